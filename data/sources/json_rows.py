"""Files of JSON lists and of JSON lines."""

import gzip
import json
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from data.sources.row_table import ROW, Files, RowTable
from modeling.user_error import UserError

LISTS, LINES = (".json", ".json.gz"), (".jsonl", ".jsonl.gz")
"""Endings of files with a JSON list, and with JSON lines."""
MAX_LIST = 4 * 2**30
"""Largest JSON list in bytes, uncompressed. It is held in memory while it is read."""
MAX_LINE = 64 * 2**20
"""Longest of JSON lines in bytes."""


def rows_of(files: Files) -> Iterator[dict[str, str]]:
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


class JsonRows(RowTable):
    """Writes the rows of JSON lists and of JSON lines to the cache."""

    rows_of = staticmethod(rows_of)
