"""Files that a run leaves, each whole or not at all."""

import json
from pathlib import Path
from typing import Any

from modeling.whole_file import whole_file


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text so that `path` is absent, as before, or whole."""
    with whole_file(path) as file:
        file.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON so that `path` is absent, as before, or whole."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Returns what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))
