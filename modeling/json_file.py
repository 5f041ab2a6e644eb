"""JSON files that others wrote. A file is refused where it is too large, or where two readers may take it differently.

JSON leaves open what a key means that stands twice in an object. Python takes the last one, other readers the first.
"""

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

from .user_error import UserError

MOST_BYTES = 64 * 2**20
"""Largest file that is read. Tokenizers of 256,000 tokens have about half of it."""
MOST_DEPTH = 64
"""Deepest nesting of objects and lists. Readers that recurse fail, or take ever longer, beyond some hundreds."""


def read_json(path: str | os.PathLike, most_bytes: int = MOST_BYTES) -> dict:
    """Returns the JSON object in a file.

    Args:
        path: of the file.
        most_bytes: size of the largest file that is read.

    Raises:
        UserError: there is no such file, it cannot be read or is larger, it is not JSON as its standard has it (UTF-8,
            no NaN, no infinity), it is nested deeper than MOST_DEPTH, a key stands twice in an object, or it does not
            hold an object.
    """
    path = Path(path)
    text = read_text(path, most_bytes)
    try:
        content = json.loads(text, object_pairs_hook=_with_keys_once, parse_constant=_finite, parse_float=_finite)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: got {type(content).__name__}, expected a JSON object")
    if _is_deeper(content, MOST_DEPTH):
        raise UserError(f"{path}: its objects and lists are nested deeper than {MOST_DEPTH}")
    return content


def read_text(path: Path, most_bytes: int) -> str:
    """Returns the text in a file. Raises UserError if it is absent, no ordinary file, larger, unreadable or not UTF-8.

    Args:
        path: of the file.
        most_bytes: size of the largest file that is read.
    """
    try:
        if not path.is_file():  # a pipe has no end, and a folder no text
            raise UserError(f"{path}: {'is no ordinary file' if path.exists() else 'no such file'}")
        size = path.stat().st_size
        if size > most_bytes:
            raise UserError(f"{path}: got {size:,} bytes, allowed: up to {most_bytes:,}")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text in UTF-8 ({error})") from None


def _with_keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise UserError(f"the key {twice!r} stands twice in an object")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise UserError(f"got the number {text}, allowed: finite ones")
    return value


def _is_deeper(content: Any, most: int) -> bool:
    """Returns whether objects and lists are nested deeper than `most`."""
    level = [content]
    for _ in range(most):
        level = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
        level = [child for child in level if isinstance(child, dict | list)]
    return bool(level)
