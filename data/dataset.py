"""Samples as a torch dataset, over the indexes of their sources. Pictures are decoded when an item is fetched."""

from collections.abc import Iterator, Sequence
from copy import copy
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from data.conversations import add_images, expand_placeholders, naming_sample
from data.images import MAX_PIXELS, tokens_at
from data.index.index import Index
from data.sample import Sample

_KEPT_SIZES = 4_096
"""Sizes of pictures whose tokens a process keeps."""


class ConversationDataset(Dataset):
    """Rows of indexes as samples.

    Item i is `data.conversations.encode(samples[i], …)`. No process holds an object per sample.

    Attributes:
        samples: the samples, each read when it is asked for.
        lengths: the number of tokens of each, placeholders expanded, [samples] int32.
        supervised: how many of them are supervised, [samples] int32.
        has_picture: whether each has a picture, [samples] bool.
        digests: equal for equal samples, [samples] int64.

    Args:
        indexes: the indexes that the samples are in. Their rows must be good.
        numbers: for each sample, which of the indexes it is in, [samples].
        rows: for each sample, its row there, [samples].
        max_pixels: the most that a picture may have.
    """

    def __init__(
        self,
        indexes: Sequence[Index],
        numbers: np.ndarray,
        rows: np.ndarray,
        processor: ProcessorMixin,
        max_pixels: int = MAX_PIXELS,
    ):
        self._indexes, self._processor, self._max_pixels = indexes, processor, max_pixels
        self._numbers, self._rows = numbers.astype(np.int32), rows.astype(np.int32)
        self.lengths = self._of_rows("lengths")
        self.supervised = self._of_rows("supervised")
        self.has_picture = self._of_rows("has_picture")
        self.digests = self._of_rows("digests")

    @property
    def samples(self) -> "Samples":
        return Samples(self._indexes, self._numbers, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = self.samples[index]
        with naming_sample(sample):
            return add_images(self._unexpanded(index), sample, self._processor, self._max_pixels)

    def tokens(self, index: int) -> dict[str, torch.Tensor]:
        """Returns item `index` without its pictures, which are not opened."""
        sizes = self._indexes[self._numbers[index]].sizes(int(self._rows[index]))
        tokens_of_images = [_tokens_at(size, self._processor) for size in sizes]
        return expand_placeholders(self._unexpanded(index), tokens_of_images, self._processor)

    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the different sizes of all pictures, [sizes, 2] as (height, width) in pixels, and how many have each.

        A picture that several samples show is counted for each of them.
        """
        parts = [index.sizes_of(self._rows[self._numbers == number]) for number, index in enumerate(self._indexes)]
        return np.unique(np.concatenate(parts), axis=0, return_counts=True)

    def pictures(self) -> Iterator[Path]:
        """Yields the file of each picture, once for each index that shows it. Those within rows have none."""
        for number, index in enumerate(self._indexes):
            yield from index.picture_files(self._rows[self._numbers == number])

    def subset(self, indices: Sequence[int] | np.ndarray) -> "ConversationDataset":
        """Returns a dataset of these items, in the order of `indices`."""
        part = copy(self)
        for name in ("_numbers", "_rows", "lengths", "supervised", "has_picture", "digests"):
            setattr(part, name, getattr(self, name)[np.asarray(indices, dtype=np.int64)])
        return part

    def _unexpanded(self, index: int) -> dict[str, torch.Tensor]:
        return self._indexes[self._numbers[index]].tokens(int(self._rows[index]))

    def _of_rows(self, name: str) -> np.ndarray:
        """Returns an attribute of the indexes for each sample."""
        values = np.empty(len(self._rows), dtype=getattr(self._indexes[0], name).dtype)
        for number, index in enumerate(self._indexes):
            here = self._numbers == number
            values[here] = getattr(index, name)[self._rows[here]]
        return values


class Samples(Sequence[Sample]):
    """Samples that are read from their indexes when they are asked for."""

    def __init__(self, indexes: Sequence[Index], numbers: np.ndarray, rows: np.ndarray):
        self._indexes, self._numbers, self._rows = indexes, numbers, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Samples(self._indexes, self._numbers[index], self._rows[index])
        return self._indexes[self._numbers[index]].sample(int(self._rows[index]))


@lru_cache(maxsize=_KEPT_SIZES)
def _tokens_at(size: tuple[int, int], processor: ProcessorMixin) -> torch.Tensor:
    return tokens_at(size, processor)
