"""A journal: measured values in a file that grows by a line each, so that a killed measurement goes on.

It is a cache. The first line names what was measured, a model and its data. A journal of something else is begun anew.
A line that was torn by a kill, or is damaged, is as if it were not there.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training.files import append_text, write_text


class Journal:
    """Values by key, in memory and in a file.

    Args:
        path: the file. It is made if it is missing.
        subject: a fingerprint of what is measured. Values of another one are not used.
    """

    def __init__(self, path: Path, subject: str):
        self._path = path
        first, *records = [*_lines(path), None]
        if first != {"subject": subject}:
            write_text(path, json.dumps({"subject": subject}) + "\n")
            records = []
        self._values = {
            record["key"]: record["value"]
            for record in records
            if isinstance(record, dict) and record.keys() == {"key", "value"} and isinstance(record["key"], str)
        }
        if not path.read_bytes().endswith(b"\n"):
            append_text(path, "\n")  # else the next line would be torn with the last one

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def items(self) -> Iterable[tuple[str, Any]]:
        """Returns all keys with their values."""
        return self._values.items()

    def add(self, key: str, value: Any) -> None:
        """Writes a value, which JSON must be able to hold, at the file's end."""
        self._values[key] = value
        append_text(self._path, json.dumps({"key": key, "value": value}) + "\n")


def _lines(path: Path) -> list[Any]:
    """Returns the values in a file of JSON lines, without torn lines. It is empty if there is no file."""
    objects = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            objects.append(json.loads(line))
        except (ValueError, RecursionError):  # torn
            continue
    return objects
