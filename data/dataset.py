"""Samples as a torch dataset.

When it is built, texts are encoded and pictures are checked. Pictures are decoded when an item is fetched.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import lru_cache
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from data.conversations import (
    add_images,
    check_expansion,
    check_length,
    encode_text,
    expand_placeholders,
    naming_sample,
)
from data.images import MAX_PIXELS, check_tokens_at, open_image, read_image_size, tokens_at
from data.sample import BadSample, OnBadSample, Sample, SampleTooLong, check_bad_share
from modeling.user_error import UserError


class ConversationDataset(Dataset):
    """What `encode` gives for each usable sample, in the order given.

    Samples longer than `max_length` tokens are left out and listed. Any other bad sample is an error. With
    `on_bad_sample="skip"` it is left out and listed instead. To know broken pictures beforehand, "skip" decodes every
    picture once while the dataset is built. "error" reads only the header, so that a truncated picture is an error when
    its item is fetched.

    Attributes:
        samples: the samples that are kept. Item i is `encode(samples[i], …)`.
        lengths: the number of tokens of each of them, placeholders expanded.
        bad: the bad samples that were left out.
        too_long: the samples that were left out because of their length.

    Raises:
        UserError: there is a bad sample, or more than a share of `max_bad_share` of them, or no sample is left.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: ProcessorMixin,
        *,
        max_length: int,
        on_bad_sample: OnBadSample = "error",
        max_bad_share: float = 0.0,
        max_pixels: int = MAX_PIXELS,
    ):
        self.samples: list[Sample] = []
        self.lengths: list[int] = []
        self.bad: list[BadSample] = []
        self.too_long: list[BadSample] = []
        self._tokens: list[dict[str, torch.Tensor]] = []
        self._tokens_of_images: list[list[torch.Tensor]] = []
        self._processor, self._max_pixels = processor, max_pixels

        tokens_of_size = lru_cache(maxsize=None)(lambda size: tokens_at(size, processor))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            paths = dict.fromkeys(path for sample in samples for path in sample.images)
            sizes = {path: pool.submit(_check_picture, path, max_pixels, on_bad_sample == "skip") for path in paths}
            for index, sample in enumerate(samples):
                try:
                    with naming_sample(sample):
                        tokens = encode_text(sample, processor)
                        of_images = [tokens_of_size(sizes[path].result()) for path in sample.images]
                        length = len(tokens["input_ids"]) - len(of_images) + sum(map(len, of_images))
                        check_length(length, max_length)
                except SampleTooLong as error:
                    self.too_long.append(BadSample(sample.id, index, str(error)))
                except UserError as error:
                    if on_bad_sample == "error":
                        pool.shutdown(cancel_futures=True)
                        raise
                    self.bad.append(BadSample(sample.id, index, str(error)))
                else:
                    self.samples.append(sample)
                    self.lengths.append(length)
                    self._tokens.append(tokens)
                    self._tokens_of_images.append(of_images)
        check_bad_share(self.bad, len(samples), max_bad_share)
        if not self.samples:
            raise UserError(
                f"no sample is left of {len(samples)}: {len(self.too_long)} have more than {max_length} tokens, "
                f"{len(self.bad)} are bad"
            )
        kept = {path for sample in self.samples for path in sample.images}
        check_tokens_at((sizes[path].result() for path in kept), processor)
        example = next((sample for sample in self.samples if sample.images), self.samples[0])
        with naming_sample(example):
            check_expansion(example, processor, max_pixels)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = self.samples[index]
        with naming_sample(sample):
            return add_images(self._tokens[index], sample, self._processor, self._max_pixels)

    def subset(self, indices: Sequence[int]) -> "ConversationDataset":
        """Returns a dataset of these items, in the order of `indices`. It lists the same samples that were left out."""
        part = copy(self)
        for name in ("samples", "lengths", "_tokens", "_tokens_of_images"):
            values = getattr(self, name)
            setattr(part, name, [values[index] for index in indices])
        return part

    def tokens(self, index: int) -> dict[str, torch.Tensor]:
        """Returns item `index` without its pictures, which are not decoded."""
        return expand_placeholders(self._tokens[index], self._tokens_of_images[index], self._processor)


def _check_picture(path: Path, max_pixels: int, decode: bool) -> tuple[int, int]:
    """Returns (height, width) of a picture, in pixels.

    Raises:
        UserError: the header is bad or, with `decode`, any part of the file.
    """
    if decode:
        open_image(path, max_pixels)
    return read_image_size(path, max_pixels)
