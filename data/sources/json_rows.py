"""Files of JSON lists and of JSON lines."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

from data.sources.row_table import ROW, Files, RowTable
from modeling.user_error import UserError

LISTS, LINES = (".json", ".json.gz"), (".jsonl", ".jsonl.gz")
"""Endings of files with a JSON list, and with JSON lines."""
MAX_LIST = 4 * 2**30
"""Largest JSON list in bytes, uncompressed. It is held in memory while it is read."""
MAX_LINE = 64 * 2**20
"""Longest of JSON lines in bytes."""
_SPACE = re.compile(r"[ \t\n\r]*")


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
    decoded = text.decode()
    del text
    yield from _items(decoded)


def _items(text: str) -> Iterator[str]:
    """Yields the items of a JSON list as they are written there."""
    start = _behind(text, 0)
    if not text.startswith("[", start):
        raise UserError(f"got {type(json.loads(text)).__name__}, a list of rows is expected")
    decoder, place = json.JSONDecoder(), _behind(text, start + 1)
    more = not text.startswith("]", place)
    while more:
        _, end = decoder.raw_decode(text, place)
        yield text[place:end]
        place = _behind(text, end)
        more = text.startswith(",", place)
        if more:
            place = _behind(text, place + 1)
    if not text.startswith("]", place):
        raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
    end = _behind(text, place + 1)
    if end < len(text):
        raise json.JSONDecodeError("Extra data", text, end)


def _behind(text: str, place: int) -> int:
    """Returns where the white space at a place ends."""
    space = _SPACE.match(text, place)
    assert space is not None, "it matches everywhere"
    return space.end()


def _lines(file: BufferedIOBase) -> Iterator[str]:
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise UserError(f"a line of more than {MAX_LINE} bytes")
        if line.strip():
            yield line.decode()


class JsonRows(RowTable):
    """Writes the rows of JSON lists and of JSON lines to the cache."""

    rows_of = staticmethod(rows_of)
