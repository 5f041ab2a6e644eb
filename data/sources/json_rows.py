"""JSON lists and JSON lines as a table.

The rows of such a file may have values of different types, which no typed table takes. The table has one column of
texts, each of them a row as JSON. `datasets` keeps it in its cache until a file changes, and maps it into memory.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import datasets

from data.sources.library import in_one_line
from modeling.user_error import UserError

LISTS, LINES = (".json", ".json.gz"), (".jsonl", ".jsonl.gz")
"""Endings of files with a JSON list, and with JSON lines."""
MAX_LIST = 4 * 2**30
"""Largest JSON list in bytes, uncompressed. It is held in memory while it is read."""
MAX_LINE = 64 * 2**20
"""Longest of JSON lines in bytes."""
ROW = "row"
"""The table's column."""


Files = tuple[tuple[str, int, int], ...]
"""Path, size in bytes and time of change of each file. `datasets` reads them anew where one of these is another."""


def files_of(paths: Sequence[Path]) -> Files:
    """Returns what tells whether files are still the same."""
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)


def json_table(paths: Sequence[Path], name: str) -> datasets.Dataset:
    """Returns the rows of files as a table with one column of texts.

    Raises:
        UserError: a file cannot be read, or is not a list of rows. A line that is not JSON is found by `parse_row`.
    """
    with in_one_line(name):
        return datasets.Dataset.from_generator(
            _rows,
            features=datasets.Features({ROW: datasets.Value("large_string")}),
            gen_kwargs={"files": files_of(paths)},
        )


def parse_row(row: dict) -> dict:
    """Returns a row of such a table as the object that its text says. Raises UserError where it is no object."""
    try:
        parsed = json.loads(row[ROW])
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise UserError(f"got {type(parsed).__name__}, a row is an object")
    return parsed


def json_columns(table: datasets.Dataset) -> list[str]:
    """Returns the names that the rows of such a table have. It takes a pass over the rows, which `datasets` keeps."""
    found = table.select_columns(ROW).map(_columns, batched=True, remove_columns=ROW, desc="columns")
    return sorted(set(found["column"]))


def _columns(batch: dict[str, list[str]]) -> dict[str, list[str]]:
    columns: set[str] = set()
    for text in batch[ROW]:
        try:
            columns.update(parse_row({ROW: text}))
        except UserError:  # it is a bad row, which is named when it is read
            continue
    return {"column": sorted(columns)}


def _rows(files: Files) -> Iterator[dict[str, str]]:
    """Yields the rows of files."""
    for name, _, _ in files:
        path = Path(name)
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                yield from ({ROW: text} for text in (_list if name.endswith(LISTS) else _lines)(file))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: cannot be read ({error})") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not JSON ({error})") from error


def _list(file: BufferedIOBase) -> Iterator[str]:
    text = file.read(MAX_LIST + 1)
    if len(text) > MAX_LIST:
        raise UserError(f"a JSON list of more than {MAX_LIST} bytes; JSON lines (.jsonl) may be longer")
    rows: Any = json.loads(text.decode())
    del text
    if not isinstance(rows, list):
        raise UserError(f"got {type(rows).__name__}, a list of rows is expected")
    yield from map(json.dumps, rows)


def _lines(file: BufferedIOBase) -> Iterator[str]:
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise UserError(f"a line of more than {MAX_LINE} bytes")
        if line.strip():
            yield line.decode()
