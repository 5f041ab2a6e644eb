"""How sure a measured value is: Wilson's interval of a mean score, and the bootstrap of any metric."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.benchmarks.benchmark import Benchmark, Record, units_of
from modeling.user_error import UserError

NORMAL_QUANTILE = 1.959963984540054  # two-sided 95 %
PERCENTILES = (2.5, 97.5)
RESAMPLINGS = 1_000
AT_ONCE = 50
"""Resamplings whose weights are in memory together."""


class Accuracy(NamedTuple):
    """A mean score in [0, 1], the ends of its 95 % interval, and the number of questions."""

    accuracy: float
    low: float
    high: float
    count: int


def wilson(scores: Sequence[float]) -> Accuracy:
    """Returns the mean of scores in [0, 1] with its 95 % Wilson score interval (Wilson 1927).

    With the mean p of n scores and the normal quantile z, the interval's ends are:

        (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)

    It is made for scores that are right or wrong. For others it is conservative: a variable in [0, 1] of mean p has a
    variance of at most p(1 - p). Scores are taken as independent.

    Raises:
        UserError: there are no scores.
    """
    if not scores:
        raise UserError("evaluation: no questions to score")
    n, z = len(scores), NORMAL_QUANTILE
    mean = math.fsum(scores) / n
    centre = mean + z * z / (2 * n)
    half = z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # If all scores are 0 or all are 1, rounding must not leave the mean outside its interval.
    return Accuracy(mean, min(mean, max(0.0, (centre - half) / scale)), max(mean, min(1.0, (centre + half) / scale)), n)


class Resampled(NamedTuple):
    """The metrics of a model's answers to a benchmark.

    Attributes:
        values: name of each metric -> its value. The first is the one that counts.
        draws: name of each -> its value in every resampling, [RESAMPLINGS].
    """

    values: dict[str, float]
    draws: dict[str, np.ndarray]

    def interval(self, name: str) -> tuple[float, float]:
        """Returns the ends of a metric's 95 % interval: percentiles of its resamplings. They hold the value."""
        low, high = np.percentile(self.draws[name], PERCENTILES)
        return min(float(low), self.values[name]), max(float(high), self.values[name])


def resample(benchmark: Benchmark, records: Sequence[Record]) -> Resampled:
    """Returns the metrics of answers, and what they are where units are drawn anew, with replacement.

    Two models' answers to the same questions are drawn alike, so that their draws can be compared pair by pair.

    Args:
        records: the answers to all questions, scored.
    """
    tallies = [benchmark.tally(unit) for unit in units_of(records).values()]
    names = sorted({name for tally in tallies for name in tally})
    counted = np.array([[tally.get(name, 0.0) for name in names] for tally in tallies])  # [units, sums]
    generator = np.random.default_rng(0)
    sums = []
    for start in range(0, RESAMPLINGS, AT_ONCE):
        drawn = [
            np.bincount(generator.integers(len(counted), size=len(counted)), minlength=len(counted))
            for _ in range(start, min(start + AT_ONCE, RESAMPLINGS))
        ]
        sums.append(np.array(drawn, dtype=float) @ counted)  # whole numbers are multiplied several times more slowly
    values = benchmark.metrics(dict(zip(names, counted.sum(0), strict=True)))
    draws = benchmark.metrics(dict(zip(names, np.concatenate(sums).T, strict=True)))
    return Resampled({name: float(value) for name, value in values.items()}, draws)
