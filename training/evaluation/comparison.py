"""Two models' answers to the same questions, compared pair by pair."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from checkpoints.card import mean_share
from data.benchmarks.benchmark import Record
from data.benchmarks.registry import BENCHMARKS
from training.evaluation.intervals import PERCENTILES
from training.evaluation.results import Evaluation


@dataclass(frozen=True)
class Comparison:
    """A sparse model beside its dense one on a benchmark, by the metric that counts, in the units of papers.

    Attributes:
        metric: its name.
        dense, sparse: its values.
        difference: sparse minus dense.
        low, high: the difference's 95 % interval, by a bootstrap that draws the same pictures for both models.
        kept: the sparse value as a share of the dense one; None where that is 0.
        p_value: of McNemar's exact test that both are right equally often; None where answers can be partly right.
        blind: the dense model's value where it is shown grey pictures; None if it was not asked so.
        count: the number of questions.
    """

    metric: str
    dense: float
    sparse: float
    difference: float
    low: float
    high: float
    kept: float | None
    p_value: float | None
    blind: float | None
    count: int


def compare(dense: Evaluation, sparse: Evaluation, blind: Evaluation | None = None) -> dict[str, Comparison]:
    """Returns the comparison on each benchmark whose true answers are known.

    Args:
        dense: the dense model's answers.
        sparse: the sparse model's answers to the same questions, in the same order.
        blind: the dense model's answers to them where it is shown grey pictures.
    """
    assert [record.id for record in dense.records] == [record.id for record in sparse.records]
    found = {}
    for name, resampled in dense.resampled.items():
        metric, value = next(iter(resampled.values.items()))
        other = sparse.resampled[name]
        low, high = np.percentile(other.draws[metric] - resampled.draws[metric], PERCENTILES)
        difference = other.values[metric] - value
        found[name] = Comparison(
            metric=metric,
            dense=value,
            sparse=other.values[metric],
            difference=difference,
            low=min(float(low), difference),
            high=max(float(high), difference),
            kept=other.values[metric] / value if value else None,
            p_value=_p_value(dense.by_benchmark[name], sparse.by_benchmark[name]),
            blind=None if blind is None else blind.resampled[name].values[metric],
            count=len(dense.by_benchmark[name]),
        )
    return found


def as_dict(comparisons: dict[str, Comparison]) -> dict[str, Any]:
    """Returns comparisons as JSON holds them, each with the benchmark's title."""
    return {name: {"title": BENCHMARKS[name].title, **asdict(found)} for name, found in comparisons.items()}


def relative_accuracy(model: Evaluation, reference: Evaluation) -> float | None:
    """Returns the mean over benchmarks of the share of the reference's metric that is kept. It may exceed 1.

    Returns None if a benchmark's metric of the reference is 0.
    """
    return mean_kept(compare(reference, model))


def mean_kept(comparisons: dict[str, Comparison]) -> float | None:
    """Returns the mean share that is kept on these benchmarks; None if the dense model's metric of one is 0."""
    return mean_share([comparison.kept for comparison in comparisons.values()])


def mcnemar(only_first: int, only_second: int) -> float:
    """Returns the two-sided p-value of McNemar's exact test.

    Under the hypothesis that both models are right equally often, each question that just one of them answers right is
    a fair coin (McNemar 1947; exact form: the binomial test).

    Args:
        only_first: questions that the first model alone answers right.
        only_second: questions that the second model alone answers right.
    """
    tosses = only_first + only_second
    # In logarithms, as 2^tosses is no float for many tosses.
    logs = [
        math.lgamma(tosses + 1) - math.lgamma(heads + 1) - math.lgamma(tosses - heads + 1) - tosses * math.log(2)
        for heads in range(min(only_first, only_second) + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def _p_value(dense: Sequence[Record], sparse: Sequence[Record]) -> float | None:
    pairs = [(one.score, other.score) for one, other in zip(dense, sparse, strict=True)]
    if not {score for pair in pairs for score in pair} <= {0.0, 1.0}:
        return None
    return mcnemar(pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0)))
