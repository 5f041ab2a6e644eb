"""Text and JSON files that are either written completely or not at all."""

import json
from pathlib import Path
from typing import Any

from modeling.whole_file import whole_file


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text. If the process is killed meanwhile, `path` is as it was before."""
    with whole_file(path) as file:
        file.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON. If the process is killed meanwhile, `path` is as it was before."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
