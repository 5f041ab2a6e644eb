"""Mixes several sources into one training set.

Each source is used as often as the user asks, and the sources are evenly interleaved. The seed decides which samples a
source gives, and their order. Any stretch of the mixture has the sources in proportion to their sizes, so that it may
also be read without shuffling, or only in part.
"""

import random
from collections.abc import Sequence

from transformers import ProcessorMixin

from data.dataset import ConversationDataset
from data.images import MAX_PIXELS
from data.sample import BadSample, OnBadSample, Sample
from data.sources.reading import load_samples
from data.sources.source import Source
from modeling.user_error import UserError


def draw_samples(
    sources: Sequence[Source], *, seed: int, on_bad_sample: OnBadSample = "error", max_bad_share: float = 0.0
) -> tuple[list[Sample], list[BadSample]]:
    """Returns the samples of a mixture in their order, and the bad rows of its files that were left out.

    Raises:
        UserError: as `load_samples`, or a source has fewer samples than it is asked for.
    """
    # Each sample with its position in the mixture, from 0 to 1, and the index of its source.
    positioned: list[tuple[float, int, Sample]] = []
    bad: list[BadSample] = []
    for source_index, source in enumerate(sources):
        samples, bad_rows = load_samples(source, on_bad_sample=on_bad_sample, max_bad_share=max_bad_share)
        drawn = _draw(samples, source, random.Random(f"{seed} {source_index}"))
        positioned += [((index + 0.5) / len(drawn), source_index, sample) for index, sample in enumerate(drawn)]
        bad += bad_rows
    positioned.sort(key=lambda entry: entry[:2])
    return [sample for _, _, sample in positioned], bad


def build_mixture(
    sources: Sequence[Source],
    processor: ProcessorMixin,
    *,
    max_length: int,
    seed: int,
    on_bad_sample: OnBadSample = "error",
    max_bad_share: float = 0.0,
    max_pixels: int = MAX_PIXELS,
) -> ConversationDataset:
    """Returns the mixture as a dataset. Its `bad` also lists the rows that were left out when the files were read.

    Raises:
        UserError: as `draw_samples` and `ConversationDataset`.
    """
    samples, bad = draw_samples(sources, seed=seed, on_bad_sample=on_bad_sample, max_bad_share=max_bad_share)
    dataset = ConversationDataset(
        samples,
        processor,
        max_length=max_length,
        on_bad_sample=on_bad_sample,
        max_bad_share=max_bad_share,
        max_pixels=max_pixels,
    )
    dataset.bad[:0] = bad
    return dataset


def _draw(samples: list[Sample], source: Source, rng: random.Random) -> list[Sample]:
    """Returns as many samples as the source asks for, shuffled. None comes a second time before each came once."""
    count = source.num_samples or max(1, round((source.weight or 1.0) * len(samples)))
    if source.num_samples and count > len(samples):
        name = source.path or source.hub
        raise UserError(f"{name}: num_samples is {count}, but there are {len(samples)} good samples")
    drawn: list[Sample] = []
    while len(drawn) < count:
        drawn += rng.sample(samples, min(len(samples), count - len(drawn)))
    return drawn
