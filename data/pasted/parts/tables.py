"""Numbers of real tables, for bar charts."""

import csv
import io
import json
from collections.abc import Sequence

from data.pasted.archive import members
from data.pasted.packages import PACKAGES, fetch

TABLES = {
    "barley.json": ("yield",),
    "cars.json": ("Horsepower", "Miles_per_Gallon", "Weight_in_lbs"),
    "driving.json": ("miles", "gas"),
    "iowa-electricity.csv": ("net_generation",),
    "seattle-weather.csv": ("precipitation", "temp_max", "wind"),
    "stocks.csv": ("price",),
    "us-employment.csv": ("construction", "government", "information", "manufacturing"),
    "wheat.json": ("wheat", "wages"),
}
"""Files of vega_datasets -> columns of numbers in them."""


def read_columns() -> list[tuple[float, ...]]:
    """Returns the columns of TABLES, each with all its positive numbers in the order of the rows.

    Raises:
        PackageUnavailable: the package cannot be had here.
    """
    files = members(fetch(PACKAGES["vega_datasets"]), r"vega_datasets/_data/.*")
    contents = {name.rpartition("/")[2]: content.decode() for name, content in files}
    return [_numbers(_rows(file, contents[file]), column) for file, columns in TABLES.items() for column in columns]


def _rows(file: str, content: str) -> Sequence[dict]:
    return json.loads(content) if file.endswith(".json") else list(csv.DictReader(io.StringIO(content)))


def _numbers(rows: Sequence[dict], column: str) -> tuple[float, ...]:
    return tuple(number for row in rows if row.get(column) not in (None, "") and (number := float(row[column])) > 0)
