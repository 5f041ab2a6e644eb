"""The order of tests, and a script run as from the command line, but in this process: torch takes seconds to import."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
RUNS = Path(__file__).resolve().parent / "training" / "tasks"


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def pytest_collection_modifyitems(config, items):
    """Of several workers none is left with a whole run when the others have ended: runs come first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: RUNS not in item.path.parents)


@pytest.fixture
def run_script(monkeypatch, capsys) -> Callable[..., Done]:
    """Runs `python scripts/NAME.py arguments ...`, given NAME.py and the arguments."""

    def call(name: str, *arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        return Done(stopped.value.code, *capsys.readouterr())

    return call
