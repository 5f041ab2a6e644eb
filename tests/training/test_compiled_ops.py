"""Training compiles no op for inference. Locks of killed compilations are cleared, those of living ones are not."""

import os
import shutil
import subprocess
import sys
import time
from importlib import import_module

import pytest

from training.compiled_ops import OLD_SECONDS, clear_killed_builds, compile_no_inference_op, on_several_machines

# Begins to build as torch does: its lock is open while it works.
BUILDS = """
import sys, time
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("building", flush=True)
time.sleep(600)
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    folder = tmp_path / "deepspeed_shm_comm"
    folder.mkdir()
    (folder / "deepspeed_shm_comm.so").write_bytes(b"half of a libr")
    return folder


@pytest.fixture
def builder(cache):
    process = subprocess.Popen([sys.executable, "-c", BUILDS, str(cache / "lock")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "building\n"
    yield process
    process.kill()
    process.wait()


def test_a_living_build_is_left_alone_and_a_killed_one_is_cleared(cache, builder):
    assert clear_killed_builds(several_machines=False) == []
    assert (cache / "lock").exists()
    (cache / "deepspeed_shm_comm.so").write_bytes(b"the other half, or a part of it")
    builder.kill()
    builder.wait()
    assert (cache / "lock").exists(), "this is what makes later runs wait for ever"
    assert clear_killed_builds(several_machines=False) == [cache]
    assert not cache.exists(), "the half-written library goes too"


def test_a_library_that_was_whole_before_it_was_locked_stays(cache, builder):
    """Its process was killed while it loaded it. Another one may load it at this moment."""
    builder.kill()
    builder.wait()
    assert clear_killed_builds(several_machines=False) == [cache]
    assert [path.name for path in cache.iterdir()] == ["deepspeed_shm_comm.so"]


def test_a_finished_build_stays(cache):
    assert clear_killed_builds(several_machines=False) == []
    assert (cache / "deepspeed_shm_comm.so").exists()


def test_where_another_machine_may_build_a_lock_must_be_old(cache):
    (cache / "lock").touch()
    assert clear_killed_builds(several_machines=True) == []
    past = time.time() - OLD_SECONDS - 1
    for path in (*cache.iterdir(), cache):
        os.utime(path, (past, past))
    assert clear_killed_builds(several_machines=True) == [cache]


@pytest.mark.parametrize(
    ("launched", "several"),
    [
        ({}, False),
        ({"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, False),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}, False),
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, True),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}, True),
        ({"WORLD_SIZE": "8", "LOCAL_SIZE": "8"}, False),  # under deepspeed
        ({"WORLD_SIZE": "2", "LOCAL_SIZE": "1"}, True),
    ],
)
def test_launchers_say_whether_there_are_several_machines(launched, several, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    assert on_several_machines() == several


@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles nothing without a compiler")
def test_the_op_for_inference_is_not_compiled(monkeypatch):
    import deepspeed
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    loaded, backend = [], import_module("deepspeed.comm.torch")
    monkeypatch.setattr(ShareMemCommBuilder, "load", lambda self: loaded.append(self.NAME))
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", True)
    backend.build_shm_op()
    assert loaded == ["deepspeed_shm_comm"], "without us it would be"
    compile_no_inference_op()
    assert backend.build_shm_op() is None and len(loaded) == 1
