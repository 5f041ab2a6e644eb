"""An error of one rank in a training ends all ranks, and only that rank speaks of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import free_port
from tests.training.tasks.test_signals import overrides
from training.recipe.file import RECIPES

pytestmark = pytest.mark.slow

FAILS = """
import errno, os
import train
from training import cli
from training.distillation.trainer import DistillationTrainer

def full_disk(self, folder, *arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{folder}/part")

def mistake(*arguments, **named):
    raise LookupError("a mistake of ours")

if os.environ["RANK"] == os.environ["FAILS_ON"]:
    setattr(*{
        "checkpoint": (DistillationTrainer, "_save_rng_state", full_disk),
        "log": (DistillationTrainer, "log", lambda self, *arguments: full_disk(self, "metrics.jsonl")),
        "mistake": (DistillationTrainer, "compute_loss", mistake),
    }[os.environ["FAILS_AT"]])
cli.run(train.main)
"""
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
DEEPSPEED = ["-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port"]


@pytest.mark.parametrize(
    ("launcher", "rank", "place", "said"),
    [
        (TORCHRUN, 1, "checkpoint", "error: {folder}/checkpoint-1/part: No space left on device"),
        (TORCHRUN, 0, "checkpoint", "error: {folder}/checkpoint-1/part: No space left on device"),
        (DEEPSPEED, 0, "log", "error: metrics.jsonl/part: No space left on device"),
        (DEEPSPEED, 1, "mistake", "LookupError: a mistake of ours"),
    ],
    ids=["checkpoint-1", "checkpoint-0", "log", "mistake"],
)
def test_one_rank_says_what_ended_all(tmp_path, dense_folder, launcher, rank, place, said):
    (tmp_path / "fails.py").write_text(FAILS)
    script = ["fails.py", "--recipe", "debug", *overrides(dense_folder, sharded=False, processes=2)]
    done = subprocess.run(
        [sys.executable, *launcher, str(free_port()), *script, "training.save_steps=1"],
        cwd=tmp_path,
        env=os.environ | {"FAILS_ON": str(rank), "FAILS_AT": place, "PYTHONPATH": str(RECIPES.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode in (1, 2), done.stdout[-3000:]  # torchrun gives 1 whatever its ranks give
    ours, _, _ = done.stdout.partition("torch/distributed/elastic")  # torchrun adds a traceback of its own
    said = said.format(folder=Path("runs/run/students/student/trainer"))
    lines = [line.removeprefix(f"[rank{rank}]: ") for line in ours.splitlines()]  # torch marks tracebacks
    lines = [line for line in lines if line.startswith(("error:", "stopped:", "LookupError:"))]
    assert lines == [said], done.stdout[-3000:]
    assert ours.count("Traceback") == (place == "mistake"), done.stdout[-3000:]
