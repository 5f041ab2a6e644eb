"""A script run as from the command line, but in this process: torch takes seconds to import."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(request, monkeypatch, capsys) -> Callable[..., Done]:
    """Runs `python scripts/NAME.py arguments ...`, where the test stands in test_NAME.py."""
    script = SCRIPTS / request.path.name.removeprefix("test_")

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(script), run_name="__main__")
        return Done(stopped.value.code, *capsys.readouterr())

    return call
