"""What a run records of the place where it ran."""

import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import training.run
from training.run import environment

ROOT = Path(__file__).parents[2]


def test_squints_version_is_that_of_pyproject():
    written = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert environment()["packages"]["squint"] == written


def test_a_checkout_that_was_never_installed_runs(monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(training.run, "version", absent)
    assert environment()["packages"]["squint"] is None
