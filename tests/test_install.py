"""The checkout is the product: an editable install is made of it, and no wheel. Nothing is installed here."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import editable_only

ROOT = Path(__file__).parents[1]
ADVICE = "error: Squint runs from its checkout and makes no package; in the checkout, pip install -e ."


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy without what is not the project's, as builds write beside pyproject.toml."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "editable_only.py"):
        shutil.copy(ROOT / name, folder)
    for name in ("modeling", "training", "data", "checkpoints"):
        code = shutil.ignore_patterns("__pycache__", "cache", "tiny-llava")
        shutil.copytree(ROOT / name, folder / name, ignore=code)
    return folder


@pytest.mark.parametrize("hook", ["build_wheel", "build_sdist", "get_requires_for_build_wheel"])
def test_a_package_is_refused_by_every_hook(hook):
    with pytest.raises(SystemExit, match=ADVICE):
        getattr(editable_only, hook)("folder", config_settings=None)


@pytest.mark.slow
def test_pip_refuses_a_package_in_one_line(checkout, tmp_path):
    """`pip install .` builds the same wheel first."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path / "wheels",
    ]
    done = subprocess.run(list(map(str, command)), cwd=checkout, capture_output=True, text=True)
    assert done.returncode != 0 and ADVICE in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr and list(tmp_path.glob("wheels/*")) == []
    # Negative control: setuptools itself makes the wheel.
    project = (checkout / "pyproject.toml").read_text()
    backend = 'build-backend = "editable_only"\nbackend-path = ["."]\n'
    assert backend in project
    (checkout / "pyproject.toml").write_text(project.replace(backend, 'build-backend = "setuptools.build_meta"\n'))
    done = subprocess.run(list(map(str, command)), cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0 and len(list(tmp_path.glob("wheels/*.whl"))) == 1


@pytest.mark.slow
def test_an_editable_install_knows_the_rooms(checkout, tmp_path):
    """What `pip install -e .` asks the backend for."""
    code = f"import editable_only; print(editable_only.build_editable({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("squint-*.whl")
    finder = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("finder.py"))
    text = zipfile.ZipFile(wheel).read(finder).decode()
    for room in ("modeling", "training", "data", "checkpoints"):
        assert f"'{room}': '{checkout / room}'" in text
