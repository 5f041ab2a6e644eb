"""Asks benchmarks for their questions, and answers them by hand."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.benchmarks.benchmark import Benchmark, Question, Record, Style, units_of
from data.benchmarks.place import Place
from data.images import open_image
from modeling.user_error import UserError


def place_of(benchmark: Benchmark, folder: Path, layout: str) -> Place:
    """Writes the benchmark's small files in a layout, and says where they lie."""
    folder = folder / layout
    folder.mkdir(parents=True, exist_ok=True)
    getattr(import_module(f"tests.benchmark_files.{benchmark.name}"), f"write_{layout}")(folder)
    return Place(folder)


def answered(benchmark: Benchmark, questions: list[Question], predictions: list[str]) -> list[Record]:
    """The records of these answers."""
    records = []
    for question, prediction in zip(questions, predictions, strict=True):
        score, said = benchmark.judge(question, prediction)
        records.append(
            Record(
                benchmark=benchmark.name,
                id=question.id,
                family=question.family or benchmark.name,
                group=question.group,
                unit=question.unit,
                question=question.text,
                answers=question.answers,
                prediction=prediction,
                said=said,
                score=score,
                image=None,
            )
        )
    return records


def metrics_of(benchmark: Benchmark, records: list[Record]) -> dict[str, float]:
    """The metrics of records, from sums over units. Two resamplings at once give each the same."""
    tallies = [benchmark.tally(unit) for unit in units_of(records).values()]
    names = {name for tally in tallies for name in tally}
    totals = {name: np.array(sum(tally.get(name, 0.0) for tally in tallies)) for name in names}
    values = {name: float(value) for name, value in benchmark.metrics(totals).items()}
    twice = benchmark.metrics({name: np.array([total, 2 * total]) for name, total in totals.items()})
    assert {name: [value, value] for name, value in values.items()} == {n: v.tolist() for n, v in twice.items()}
    return values


def content_of(questions: list[Question]) -> list[tuple]:
    """All that questions must have in common in both layouts, pictures as pixels."""
    return [
        (
            *(question.id, question.text, question.answers, question.unit, question.group, dict(question.choices)),
            [open_image(picture).tobytes() for picture in question.sample().images],
        )
        for question in questions
    ]


def refusal(benchmark: Benchmark, place: Place, style: Style = "llava") -> str:
    """The one line in which the benchmark's files are refused."""
    with pytest.raises(UserError) as error:
        benchmark.questions(place, style)
    assert "\n" not in str(error.value)
    return str(error.value)


def change_table(place: Place, file: str, **values: object) -> None:
    """Writes a table anew with other values in all of its rows. A value of `...` leaves the column out."""
    path = place.path / file
    rows = [row | values for row in pq.read_table(path).to_pylist()]
    rows = [{name: value for name, value in row.items() if value is not ...} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), path)
