"""Samples as a torch dataset, over the indexes of their sources. What they show is decoded when an item is fetched."""

from collections.abc import Iterator, Sequence
from copy import copy
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from data.conversations import naming_sample
from data.images import MAX_PIXELS
from data.index.index import Index
from data.media import READERS, Size
from data.placeholders import add_media, expand_placeholders
from data.sample import MEDIA, Medium, Sample

_KEPT_SIZES = 4_096
"""Sizes of pictures and videos whose tokens a process keeps."""


class ConversationDataset(Dataset):
    """Rows of indexes as samples.

    Item i is `data.conversations.encode(samples[i], …)`. No process holds an object per sample.

    Attributes:
        samples: the samples, each read when it is asked for.
        lengths: the number of tokens of each, placeholders expanded, [samples] int32.
        supervised: how many of them are supervised, [samples] int32.
        has_picture, has_video: whether each has a picture, and a video, [samples] bool.
        modality: 0 for a sample of text alone, 1 with pictures, 2 with videos, 3 with both, [samples] int8.
        digests: equal for equal samples, [samples] int64.

    What is said of all samples is read anew each time that it is asked for, and not kept in memory.

    Args:
        indexes: the indexes that the samples are in. Their rows must be good.
        numbers: for each sample, which of the indexes it is in, [samples].
        rows: for each sample, its row there, [samples].
        max_pixels: the most that a picture, or a frame of a video, may have.
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

    @property
    def lengths(self) -> np.ndarray:
        return self._of_rows("lengths")

    @property
    def supervised(self) -> np.ndarray:
        return self._of_rows("supervised")

    @property
    def has_picture(self) -> np.ndarray:
        return self._of_rows("has_picture")

    @property
    def has_video(self) -> np.ndarray:
        return self._of_rows("has_video")

    @property
    def modality(self) -> np.ndarray:
        return self.has_picture + 2 * self.has_video.astype(np.int8)

    @property
    def digests(self) -> np.ndarray:
        return self._of_rows("digests")

    @property
    def samples(self) -> "Samples":
        return Samples(self._indexes, self._numbers, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = self.samples[index]
        with naming_sample(sample):
            return add_media(self._unexpanded(index), sample, self._processor, self._max_pixels)

    def tokens(self, index: int) -> dict[str, torch.Tensor]:
        """Returns item `index` without its pictures and videos, which are not opened."""
        of_index, row = self._indexes[self._numbers[index]], int(self._rows[index])
        tokens_of = {
            medium: [_tokens_at(medium, size, self._processor) for size in of_index.sizes(row, medium)]
            for medium in MEDIA
        }
        return expand_placeholders(self._unexpanded(index), tokens_of, self._processor)

    def sizes(self, medium: Medium) -> tuple[np.ndarray, np.ndarray]:
        """Returns the different sizes (`data.media`) of all pictures, or of all videos, and how many have each.

        They are [sizes, 2 or 3] and [sizes]. A file that several samples show is counted for each of them.
        """
        parts = [
            index.sizes_of(self._rows[self._numbers == number], medium) for number, index in enumerate(self._indexes)
        ]
        return np.unique(np.concatenate(parts), axis=0, return_counts=True)

    def files(self) -> Iterator[Path]:
        """Yields the file of each picture and video, once for each index that shows it. Those within rows have none."""
        for number, index in enumerate(self._indexes):
            yield from index.files(self._rows[self._numbers == number])

    def subset(self, indices: Sequence[int] | np.ndarray) -> "ConversationDataset":
        """Returns a dataset of these items, in the order of `indices`."""
        part = copy(self)
        chosen = np.asarray(indices, dtype=np.int64)
        part._numbers, part._rows = self._numbers[chosen], self._rows[chosen]
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
def _tokens_at(medium: Medium, size: Size, processor: ProcessorMixin) -> torch.Tensor:
    return READERS[medium].tokens_at(size, processor)
