"""Reads JSON that a stranger may have written."""

import json
from typing import Any

from modeling.user_error import UserError


def parse_json(text: str) -> Any:
    """Returns what a JSON text says. Raises UserError if it is no JSON, or if an object has a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice in an object")
    return found
