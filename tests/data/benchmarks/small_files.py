"""Writes the small files of benchmarks, changes them, and says how they are refused."""

from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.benchmarks.benchmark import Benchmark, Style
from data.benchmarks.place import Place
from modeling.user_error import UserError


def place_of(benchmark: Benchmark, folder: Path, layout: str) -> Place:
    """Writes the benchmark's small files in a layout, and says where they lie."""
    folder = folder / layout
    folder.mkdir(parents=True, exist_ok=True)
    getattr(import_module(f"tests.benchmark_files.{benchmark.name}"), f"write_{layout}")(folder)
    return Place(folder)


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
