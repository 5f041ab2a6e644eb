"""A signal to a training under a launcher, as schedulers and users send it: to one rank, to the launcher, to all."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.processes import free_port
from training.distillation.callbacks import read_metrics
from training.recipe.file import RECIPES
from training.starts import COMPLETE

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
LAUNCHERS = {
    "none": [sys.executable],
    "deepspeed": [BIN / "deepspeed", "--num_gpus", "2", "--master_port", "PORT"],
    "torchrun": [BIN / "torchrun", "--nproc-per-node", "2", "--master-port", "PORT"],
}


def overrides(dense_folder: Path, sharded: bool, processes: int) -> list[str]:
    return [
        "name=run",
        f"model.path={dense_folder}",
        'plan={"planner": "yopo", "budget": {"visual_flops": 0.5}}',
        "compare=[]",
        "training.max_steps=4000",
        "training.save_steps=4000",
        f"training.micro_batch_size={4 // processes}",
        f"training.deepspeed={f'{RECIPES}/deepspeed/zero2.json' if sharded else 'null'}",
    ]


def start(
    folder: Path, dense_folder: Path, launcher: str, sharded: bool
) -> tuple[subprocess.Popen, dict[str, psutil.Process]]:
    """Starts a training. Returns the launcher, and all its processes by rank when the second step has been made."""
    script = [
        RECIPES.parent / "train.py",
        "--recipe",
        "debug",
        *overrides(dense_folder, sharded, 1 if launcher == "none" else 2),
    ]
    port = str(free_port())
    command = [port if argument == "PORT" else argument for argument in LAUNCHERS[launcher]]
    log = (folder / "log").open("w")
    run = subprocess.Popen([*command, *script], cwd=folder, stdout=log, stderr=log, start_new_session=True)
    metrics = folder / "runs" / "run" / "students" / "student" / "trainer" / "metrics.jsonl"
    while len(read_metrics(metrics)) < 2:
        assert run.poll() is None, (folder / "log").read_text()[-3000:]
        time.sleep(0.2)
    children = psutil.Process(run.pid).children(recursive=True)
    ranks = {child.environ()["RANK"]: child for child in children if "RANK" in child.environ()}
    return run, ranks or {"0": psutil.Process(run.pid)}


@pytest.mark.parametrize(
    ("launcher", "target", "number", "code"),
    [
        ("none", "launcher", signal.SIGUSR1, 75),
        ("none", "launcher", signal.SIGINT, 130),
        ("deepspeed", "1", signal.SIGTERM, 75),
        ("deepspeed", "all ranks", signal.SIGUSR1, 75),
        ("deepspeed", "launcher", signal.SIGTERM, -signal.SIGTERM),
        ("deepspeed", "launcher", signal.SIGUSR1, -signal.SIGUSR1),
        ("torchrun", "launcher", signal.SIGTERM, 1),
        ("torchrun", "0", signal.SIGUSR1, 1),
    ],
)
def test_a_training_saves_and_stops(tmp_path, dense_folder, launcher, target, number, code):
    sharded = (launcher, target) == ("deepspeed", "1")
    run, ranks = start(tmp_path, dense_folder, launcher, sharded)
    assert len(ranks) == (1 if launcher == "none" else 2)
    for process in {"launcher": [run], "all ranks": list(ranks.values())}.get(target) or [ranks[target]]:
        process.send_signal(number)
    returned = run.wait(timeout=300)
    psutil.wait_procs(ranks.values(), timeout=120)
    log = (tmp_path / "log").read_text()
    assert not any(process.is_running() for process in ranks.values()), f"ranks go on alone:\n{log[-2000:]}"
    assert returned == code, log[-3000:]
    folder = tmp_path / "runs" / "run"
    (said,) = [line for line in log.splitlines() if line.startswith("stopped: ")]
    assert "in stage 5 of 9, distil the students" in said and "the same command goes on there" in said, said
    checkpoints = list(folder.glob(f"students/student/trainer/checkpoint-*/{COMPLETE}"))
    if number == signal.SIGINT:
        assert checkpoints == [] and "Traceback" not in log
        return
    (checkpoint,) = checkpoints
    step = int(checkpoint.parent.name.removeprefix("checkpoint-"))
    assert f"step {step} of students/student/trainer" in said
    assert read_metrics(checkpoint.parents[1] / "metrics.jsonl")[-1]["step"] == step, "steps were lost"
    assert json.loads(checkpoint.read_text()) == {"processes": len(ranks), "sharded": sharded}
    if launcher != "torchrun":  # torchrun reports the code of its ranks with a traceback of its own
        assert "Traceback" not in log
