"""scripts/evaluate.py on public benchmarks: alone and under torchrun, with a kill between, and its submission files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmark_files.all_benchmarks import write_all
from tests.processes import free_port
from tests.tiny_llava import tiny_llava
from tests.tiny_processor import tiny_processor

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list:
    """A random model, and three benchmarks whose questions it is asked."""
    root = tmp_path_factory.mktemp("asked")
    processor = tiny_processor()
    tiny_llava(processor).save_pretrained(root / "model")
    processor.save_pretrained(root / "model")
    data = write_all(root / "data", "llava")
    names = "pope,gqa,mme"
    return ["--model", root / "model", "--benchmarks", names, "--data", data, "--batch-size", "2", "--submission"]


def start(arguments: list, result: Path, processes: int) -> subprocess.Popen:
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", processes, "--master-port", free_port()]
    command = [sys.executable, *(torchrun if processes > 1 else []), SCRIPT, *arguments, "--json", result]
    return subprocess.Popen(
        list(map(str, command)),
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> None:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out[-2000:] + err[-4000:]


def answers(result: Path) -> list:
    return json.loads(result.read_text())["evaluations"]["model"]["records"]


@pytest.mark.slow  # three starts, two of them of two processes
def test_two_processes_that_are_killed_end_with_the_answers_of_one(arguments, tmp_path):
    finish(start(arguments, tmp_path / "alone.json", 1))
    killed = start(arguments, tmp_path / "two.json", 2)
    kept = tmp_path / "two" / "kept" / "model"
    while killed.poll() is None and not list(kept.glob("rank-*.jsonl")):
        time.sleep(0.01)
    assert killed.poll() is None, "it ended before answers were kept"
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before = {path.name: path.read_text() for path in kept.glob("rank-*.jsonl")}
    assert not (tmp_path / "two.json").exists() and before

    finish(start(arguments, tmp_path / "two.json", 2))
    assert answers(tmp_path / "two.json") == answers(tmp_path / "alone.json")
    assert not kept.exists()
    for name in ("gqa", "mme"):
        files = [sorted((tmp_path / run / "model" / name).iterdir()) for run in ("alone", "two")]
        assert [path.name for path in files[0]] == [path.name for path in files[1]] != []
        assert [path.read_text() for path in files[0]] == [path.read_text() for path in files[1]]
