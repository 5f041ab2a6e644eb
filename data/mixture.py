"""Mixes several sources into one set of samples.

Each source is used as often as the user asks, and the sources are evenly interleaved. The seed decides which samples a
source gives, and their order. Any stretch of the mixture has the sources in proportion to their sizes, so that it may
also be read without shuffling, or only in part.
"""

import random
from collections.abc import Sequence

import numpy as np
from transformers import ProcessorMixin

from data.dataset import ConversationDataset
from data.images import MAX_PIXELS
from data.index.index import Index
from data.left_out import LeftOut, check_bad
from data.sample import OnBadSample
from modeling.user_error import UserError


def draw(indexes: Sequence[Index], *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the samples of a mixture in their order, however long they are.

    Returns:
        For each sample, which of `indexes` it is in, [samples] int32.
        For each sample, its row there, [samples] int32.

    Raises:
        UserError: a source has fewer good samples than it is asked for, or none.
    """
    drawn = [_drawn_rows(index, random.Random(f"{seed} {number}")) for number, index in enumerate(indexes)]
    numbers = np.concatenate([np.full(len(rows), number, dtype=np.int32) for number, rows in enumerate(drawn)])
    # Where each sample stands in the mixture, from 0 to 1.
    places = np.concatenate([(np.arange(len(rows)) + 0.5) / len(rows) for rows in drawn])
    order = np.lexsort((numbers, places))
    return numbers[order], np.concatenate(drawn)[order]


def _drawn_rows(index: Index, rng: random.Random) -> np.ndarray:
    """Returns as many rows as the source asks for, shuffled. None comes a second time before each came once."""
    good, source = np.flatnonzero(index.is_good).astype(np.int32), index.source
    if not len(good):
        raise UserError(f"{index.name}: no good sample among {len(index)} rows")
    count = source.num_samples or max(1, round((source.weight or 1.0) * len(good)))
    if source.num_samples and count > len(good):
        raise UserError(f"{index.name}: num_samples is {count}, but there are {len(good)} good samples")
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += rng.sample(range(len(good)), min(len(good), count - len(drawn)))
    return good[drawn]


def build_mixture(
    indexes: Sequence[Index],
    processor: ProcessorMixin,
    *,
    max_length: int,
    seed: int,
    on_bad_sample: OnBadSample = "error",
    max_bad_share: float = 0.0,
    max_too_long_share: float = 0.0,
    max_pixels: int = MAX_PIXELS,
) -> tuple[ConversationDataset, LeftOut]:
    """Returns the mixture as a dataset, and what is left out of it.

    Samples are drawn from all good rows. Those of them with more than `max_length` tokens are left out then.

    Args:
        indexes: one for each source. They say how much of it is used.
        processor: the processor that the indexes were made with.
        max_length: the most tokens that a sample may have.
        seed: decides which samples are drawn, and their order.
        on_bad_sample: whether a bad row is an error, or is left out.
        max_bad_share: with "skip", the largest share of a source's rows that may be bad, in [0, 1].
        max_too_long_share: the largest share of the drawn samples that may be too long, in [0, 1].
        max_pixels: the most that a picture, or a frame of a video, may have.

    Raises:
        UserError: as `draw`, or more rows are bad or too long than are allowed, or no sample is left.
    """
    check_bad(indexes, on_bad_sample, max_bad_share)
    numbers, rows = draw(indexes, seed=seed)
    drawn = ConversationDataset(indexes, numbers, rows, processor, max_pixels)
    fits = drawn.lengths <= max_length
    left_out = LeftOut(indexes, np.stack([numbers, rows], axis=1)[~fits], max_length)
    left_out.check_too_long(max_too_long_share, len(rows))
    if not fits.any():
        raise UserError(f"no sample is left of {len(rows)}: all have more than {max_length} tokens")
    return drawn.subset(np.flatnonzero(fits)), left_out
