"""What tests of benchmarks share: facts of questions, and metrics of answers to them."""

import numpy as np
from PIL import Image

from data.benchmarks.benchmark import Benchmark, Question, Record, units_of
from data.images import open_image


def facts(questions: list[Question]) -> list[tuple]:
    """What both layouts must agree on."""
    return [(q.id, q.text, q.answers, q.unit, q.group) for q in questions]


def colors(questions: list[Question]) -> list[tuple[int, int, int]]:
    """A pixel of each question's picture, read as for a model."""
    opened: list[Image.Image] = [open_image(q.sample().images[0]) for q in questions]
    return [image.getpixel((0, 0)) for image in opened]


def answered(benchmark: Benchmark, questions: list[Question], predictions: list[str]) -> list[Record]:
    """The records of these answers. Those whose truth is not known have no score."""
    found = []
    for q, prediction in zip(questions, predictions, strict=True):
        judgement = benchmark.judge(q, prediction) if q.answers else None
        found.append(
            Record(
                benchmark.name,
                q.id,
                q.family or benchmark.name,
                q.group,
                q.unit,
                q.text,
                q.answers,
                prediction,
                judgement and judgement.said,
                judgement and judgement.score,
                None,
            )
        )
    return found


def measured(benchmark: Benchmark, records: list[Record]) -> dict[str, float]:
    """The metrics of these records.

    They are computed for two resamplings at once, all units once and all units twice. Both must give the same: metrics
    are ratios of sums.
    """
    totals: dict[str, np.ndarray] = {}
    for unit in units_of(records).values():
        for name, count in benchmark.tally(unit).items():
            totals[name] = totals.get(name, np.zeros(2)) + float(count) * np.array([1, 2])
    metrics = benchmark.metrics(totals)
    for name, value in metrics.items():
        assert np.shape(value) == (2,) and value[0] == value[1], name
    alone = benchmark.metrics({name: total[0] for name, total in totals.items()})
    assert {name: float(value) for name, value in alone.items()} == {name: v[0] for name, v in metrics.items()}
    return {name: float(value[0]) for name, value in metrics.items()}
