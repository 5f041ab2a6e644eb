"""`make clean` removes what can be made again, and no run: those hold trained checkpoints."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MADE_AGAIN = (
    ".venv/bin/python", ".venv-5.17.0/bin/python", "data/cache/world/0.png", ".pytest_cache/a", ".mypy_cache/a",
    ".ruff_cache/a", "squint.egg-info/PKG-INFO", "training/planners/__pycache__/a.pyc",
)  # fmt: skip
KEPT = ("runs/demo/checkpoint/model.safetensors", "runs/demo/checkpoint/__pycache__/a.pyc", "data/images.py")
ROOMS = ("modeling", "training", "data", "checkpoints", "scripts", "tests")
OLD_RULE = "clean:\n\trm -rf .venv .venv-5.17.0 runs data/cache\n"


def make(folder: Path, *arguments: str) -> str:
    """What make prints in `folder`, as if no make had called it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def names_runs(commands: str) -> bool:
    return any("runs" in Path(word).parts for word in commands.split())


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder with all that a clean may meet."""
    for name in ROOMS:
        (tmp_path / name).mkdir()
    for name in (*MADE_AGAIN, *KEPT):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_clean_names_no_run():
    commands = make(ROOT, "-n", "clean")
    assert "data/cache" in commands and not names_runs(commands)


def test_clean_keeps_runs_and_removes_what_can_be_made_again(checkout):
    shutil.copy(ROOT / "Makefile", checkout)
    make(checkout, "clean")
    assert [name for name in KEPT if not (checkout / name).exists()] == []
    assert [name for name in MADE_AGAIN if (checkout / name).parent.exists()] == []


def test_a_clean_that_removes_runs_is_noticed(checkout):
    """Negative control: the rule as it once was."""
    (checkout / "Makefile").write_text(OLD_RULE)
    assert names_runs(make(checkout, "-n", "clean"))
    make(checkout, "clean")
    assert not (checkout / "runs").exists()
