"""The order of tests, a script run as from the command line, but in this process (torch takes seconds to import), and a
Hub on loopback that this process asks."""

import atexit
import os
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import pytest

from tests.hub_server import HubServer, hub_server

# `datasets` reads this when it is imported. Tables that tests make are gone with the process that made them.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="squint-tests-")
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)

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


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[HubServer]:
    """A Hub that this process asks, as the user `me`. The reload test, which takes a process, is left out."""
    with hub_server() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", "hf_me")
        monkeypatch.setattr("checkpoints.publish.publish._check_reload", lambda *arguments: None)
        yield server
