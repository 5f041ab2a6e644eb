"""What a model's answers to benchmarks come to: metrics with 95 % intervals, and every answer.

The interval of a mean score of questions about different pictures is Wilson's; that of another metric is of a bootstrap
over pictures. Accuracies are shares, so that benchmarks with different metrics can stand in one plot. That of a
benchmark is its first metric as a share of the best value. The overall accuracy is the mean over the benchmarks.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.benchmarks.benchmark import OF_ALL, Benchmark, Record
from data.benchmarks.registry import BENCHMARKS
from modeling.user_error import UserError
from training.evaluation.intervals import PERCENTILES, Accuracy, Resampled, resample, wilson
from training.files import reading, write_json


class Metric(NamedTuple):
    """A metric's value and the ends of its 95 % interval, in the units in which papers print it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """A model's answers, in the order of the questions."""

    records: tuple[Record, ...]

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Evaluation":
        """Returns the evaluation of these answers. Raises UserError if there are none."""
        evaluation = cls(tuple(records))
        if not evaluation.records:
            raise UserError("evaluation: no questions to score")
        return evaluation

    @cached_property
    def by_benchmark(self) -> dict[str, list[Record]]:
        """Name of each benchmark -> its answers."""
        found: dict[str, list[Record]] = {}
        for record in self.records:
            found.setdefault(record.benchmark, []).append(record)
        return found

    @cached_property
    def resampled(self) -> dict[str, Resampled]:
        """Name of each benchmark whose true answers are known -> its metrics."""
        return {
            name: resample(BENCHMARKS[name], records)
            for name, records in self.by_benchmark.items()
            if all(record.score is not None for record in records)
        }

    @cached_property
    def metrics(self) -> dict[str, dict[str, Metric]]:
        """Name of each benchmark -> its metrics by name, the one that counts first."""
        return {
            benchmark: {name: self._metric(benchmark, name) for name in resampled.values}
            for benchmark, resampled in self.resampled.items()
        }

    @cached_property
    def families(self) -> dict[str, Accuracy]:
        """The accuracy of each family of questions. Where a benchmark has no families, it is one itself."""
        found: dict[str, Accuracy] = {}
        for name in self.resampled:
            families: dict[str, list[Record]] = {}
            for record in self.by_benchmark[name]:
                families.setdefault(record.family, []).append(record)
            if list(families) == [name]:
                found[name] = self._accuracy(name)
            else:
                found |= {family: wilson(_scores(families[family])) for family in families}
        return found

    @cached_property
    def overall(self) -> Accuracy:
        """The mean accuracy of all benchmarks. Raises UserError if no question has a published answer."""
        accuracies = [self._accuracy(name) for name in self.resampled]
        if not accuracies:
            raise UserError("evaluation: no question's true answer is known, so there is nothing to score")
        if len(accuracies) == 1:
            return accuracies[0]
        draws = np.mean([self._draws(name) for name in self.resampled], axis=0)
        low, high = np.percentile(draws, PERCENTILES)
        mean = float(np.mean([accuracy.accuracy for accuracy in accuracies]))
        return Accuracy(mean, min(mean, low), max(mean, high), sum(accuracy.count for accuracy in accuracies))

    @property
    def accuracy(self) -> float:
        """The overall accuracy in [0, 1]."""
        return self.overall.accuracy

    @property
    def low(self) -> float:
        """The lower end of the overall accuracy's interval."""
        return self.overall.low

    @property
    def high(self) -> float:
        """The upper end of the overall accuracy's interval."""
        return self.overall.high

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON object."""
        return {
            **(self.overall._asdict() if self.resampled else {}),
            "families": {name: accuracy._asdict() for name, accuracy in self.families.items()},
            "benchmarks": {
                benchmark: {name: metric._asdict() for name, metric in metrics.items()}
                for benchmark, metrics in self.metrics.items()
            },
            "records": [dict(vars(record)) for record in self.records],  # `asdict` takes 50 times as long
        }

    def save(self, path: Path) -> None:
        """Writes the JSON file, whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """Returns the evaluation that `save` wrote. The figures are computed again from the records.

        Raises:
            UserError: the file is damaged.
        """
        with reading(path, "delete it and the result of `evaluate` in stages/, and the model is asked again"):
            records = json.loads(path.read_text(encoding="utf-8"))["records"]
            return cls.of([Record(**{**record, "answers": tuple(record["answers"])}) for record in records])

    def _metric(self, benchmark: str, name: str) -> Metric:
        """Returns a metric with its interval."""
        records, resampled = self.by_benchmark[benchmark], self.resampled[benchmark]
        if type(BENCHMARKS[benchmark]).metrics is Benchmark.metrics:  # each is a mean score
            counted = [record for record in records if name in (OF_ALL, record.group)]
            if len({record.unit for record in counted}) == len(counted):
                mean = wilson(_scores(counted))
                return Metric(100 * mean.accuracy, 100 * mean.low, 100 * mean.high)
        return Metric(resampled.values[name], *resampled.interval(name))

    def _accuracy(self, benchmark: str) -> Accuracy:
        """Returns a benchmark's first metric as a share of the best value."""
        metric = next(iter(self.metrics[benchmark].values()))
        shares = (value / BENCHMARKS[benchmark].best for value in metric)
        return Accuracy(*shares, len(self.by_benchmark[benchmark]))

    def _draws(self, name: str) -> np.ndarray:
        """Returns a benchmark's first metric in all resamplings, as a share of the best value."""
        return next(iter(self.resampled[name].draws.values())) / BENCHMARKS[name].best


def _scores(records: Sequence[Record]) -> list[float]:
    return [record.score or 0.0 for record in records]
