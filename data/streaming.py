"""Samples of streamed sources, for training. They have no index: each is read, checked and encoded when its turn comes.

Which samples a step is made of depends on the seed and on the global batch, not on the number of processes, as long as
no row is bad: process r of n takes every n-th row, from the r-th on. So each process reads the whole stream, and makes
samples of its own rows alone.
"""

from collections.abc import Iterator, Sequence
from itertools import count, islice

import torch
from torch.utils.data import IterableDataset
from transformers import ProcessorMixin

from data.conversations import encode
from data.images import MAX_PIXELS
from data.sample import MEDIA, OnBadSample, SampleTooLong
from data.sources.rows import SourceRows
from data.sources.source import Source
from data.sources.stream import open_stream
from data.videos import takes_videos
from modeling.user_error import UserError

SHUFFLED_AT_ONCE = 1_000
"""Rows that are held in memory, undecoded, and drawn from at random."""
COUNTED_FROM = 1_000
"""Rows from which on shares of bad rows, and of samples that are too long, are held to their bounds."""


class StreamedDataset(IterableDataset):
    """What `data.conversations.encode` gives for each usable row of streams. A stream that ends begins anew.

    Args:
        sources: streamed sources. `weight` says how often one gives a row, in proportion to the others.
        max_length: samples with more tokens are left out.
        seed: decides the order.
        on_bad_sample: whether a bad row is an error, or is left out.
        max_bad_share, max_too_long_share: the largest share of rows that may be left out, in [0, 1].
        part: (r, n): every n-th row is taken, from the r-th on.

    Raises:
        UserError: a source cannot be opened. When it is read: a row is bad, or more are than are allowed.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        processor: ProcessorMixin,
        *,
        max_length: int,
        seed: int,
        on_bad_sample: OnBadSample,
        max_bad_share: float,
        max_too_long_share: float,
        part: tuple[int, int],
        max_pixels: int = MAX_PIXELS,
    ):
        self._rows = [open_stream(source) for source in sources]
        self._processor, self._max_length, self._seed, self._max_pixels = processor, max_length, seed, max_pixels
        self._on_bad_sample, self._part = on_bad_sample, part
        self._allowed = {"bad": max_bad_share, "too long": max_too_long_share}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        left_out = dict.fromkeys(self._allowed, 0)
        given, reason = 0, "the sources' filters leave all out"
        first, step = self._part
        for seen, (rows, epoch, number, row) in enumerate(islice(self._in_turn(), first, None, step), 1):
            if epoch > 0 and not given and seen > COUNTED_FROM:
                raise UserError(f"no sample among {seen - 1} rows, which is all of a source; the last: {reason}")
            try:
                sample = rows.sample(row, number)
                if sample is not None:
                    yield encode(sample, self._processor, self._max_length, self._max_pixels)
                    given += 1
                continue
            except SampleTooLong as error:
                kind, reason = "too long", f"{rows.name_of(row, number)}: {error}"
            except UserError as error:
                kind, reason = "bad", f"{rows.name_of(row, number)}: {error}"
                if self._on_bad_sample == "error":
                    raise UserError(reason) from error
            left_out[kind] += 1
            if left_out[kind] > self._allowed[kind] * max(seen, COUNTED_FROM):
                raise UserError(
                    f"{left_out[kind]} of {seen} samples are {kind}, at most a share of {self._allowed[kind]} is "
                    f"allowed; the last: {reason}"
                )

    def first_of_each_medium(self) -> list[dict[str, torch.Tensor]]:
        """Returns the first sample with a picture and the first with a video, as far as a thousand rows have one.

        No other is encoded.
        """
        found: list[dict[str, torch.Tensor]] = []
        missing = {medium for medium in MEDIA if medium != "video" or takes_videos(self._processor)}
        for rows, _, number, row in islice(self._in_turn(), SHUFFLED_AT_ONCE):
            try:
                sample = rows.sample(row, number)
                shown = {medium for medium in missing if sample is not None and sample.files(medium)}
                if sample is None or not shown:
                    continue
                found.append(encode(sample, self._processor, self._max_length, self._max_pixels))
            except UserError:  # it is left out when its turn comes
                continue
            missing -= shown
            if not missing:
                break
        return found

    def _in_turn(self) -> Iterator[tuple[SourceRows, int, int, dict]]:
        """Yields the rows of all sources, each as often as its weight says.

        With each come how often its source had ended before, and its number in the stream.
        """
        streams = [self._endless(rows, number) for number, rows in enumerate(self._rows)]
        weights = [rows.source.weight or 1.0 for rows in self._rows]
        given = [0] * len(streams)
        while True:
            # The source that is furthest behind.
            turn = min(range(len(streams)), key=lambda number: (given[number] + 1) / weights[number])
            given[turn] += 1
            yield self._rows[turn], *next(streams[turn])

    def _endless(self, rows: SourceRows, source: int) -> Iterator[tuple[int, int, dict]]:
        """Yields the rows of a source in random order, in another one each time that it begins anew."""
        numbers = count()
        table = rows.table.shuffle(seed=self._seed + source, buffer_size=SHUFFLED_AT_ONCE)
        for epoch in count():
            table.set_epoch(epoch)
            # Not row by row: `datasets` then has an order of its own in a worker of a DataLoader.
            for number, batch in zip(numbers, table.iter(1)):  # noqa: B905 - numbers have no end
                yield epoch, number, {name: values[0] for name, values in batch.items()}
