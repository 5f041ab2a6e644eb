"""scripts/slurm/train.sbatch with commands of SLURM that only write down what they are asked."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.machines import BIN

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "slurm" / "train.sbatch"
SCONTROL = """
echo "$@" >> scontrol
[ "$1 $2" = "show hostnames" ] && [ "$3" = "gpu[3-4]" ] && printf 'gpu3\\ngpu4\\n'
exit 0
"""
# Of all that srun does: it starts the command once for each machine, passes signals on, and ends with the worst code.
SRUN = """
echo "$@" >> srun
while [[ $1 == --* ]]; do shift; done
jobs=()
for machine in 0 1; do "$@" & jobs+=($!); done
trap 'kill -USR1 "${jobs[@]}"' USR1
worst=0
for job in "${jobs[@]}"; do
    code=200
    while [ $code -gt 128 ]; do wait $job; code=$?; done
    [ $code -gt $worst ] && worst=$code
done
exit $worst
"""
TORCHRUN = """
echo "$PET_SIGNALS_TO_HANDLE $PET_SHUTDOWN_TIMEOUT" >> torchrun
[ -n "$WAITS" ] && { trap 'echo saved >> saved; exit 1' USR1; echo up >> torchrun; while true; do sleep 0.05; done; }
exit $CODE
"""
TRAINING = """
import os, signal, sys, time
def save(number, frame):
    open(f"saved{os.environ['RANK']}", "w").close()
    sys.exit(75)
signal.signal(signal.SIGUSR1, save)
open(f"up{os.environ['RANK']}", "w").close()
time.sleep(300)
"""


@pytest.fixture
def commands(tmp_path):
    """The folder of commands, which comes first in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN), ("torchrun", TORCHRUN)):
        (folder / name).write_text(f"#!/bin/bash\n{text}")
        (folder / name).chmod(0o755)
    return folder


def job(commands: Path, machine_list: str = "gpu[3-4]", **environment: str) -> subprocess.Popen:
    """Starts the script as SLURM does."""
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": machine_list, "SLURM_JOB_NUM_NODES": "2"}
    slurm |= {"SLURM_GPUS_ON_NODE": "8", "PATH": f"{commands}:{BIN}:{os.environ['PATH']}"}
    return subprocess.Popen(
        ["bash", SCRIPT, "--recipe", "debug", "data.train=[{split: train}]"],
        cwd=commands.parent,
        env=os.environ | slurm | environment,
        text=True,
    )


def wait_for(*paths: Path, lines: int = 0) -> None:
    for _ in range(1200):
        if all(path.exists() and len(path.read_text().splitlines()) >= lines for path in paths):
            return
        time.sleep(0.05)
    raise AssertionError(f"not there: {[str(path) for path in paths]}")


def was_queued_again(commands: Path) -> bool:
    return "requeue 4711" in (commands.parent / "scontrol").read_text().splitlines()


def test_the_command(commands):
    assert job(commands, CODE="0").wait() == 0
    (asked,) = (commands.parent / "srun").read_text().splitlines()
    assert asked == (
        "--kill-on-bad-exit=0 torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-id 4711 "
        "--rdzv-endpoint gpu3:24711 train.py --recipe debug data.train=[{split: train}]"
    )
    assert not was_queued_again(commands)


@pytest.mark.parametrize(("code", "again"), [("75", True), ("1", False), ("2", False)])
def test_only_a_run_that_can_go_on_is_queued_again(commands, code, again):
    assert job(commands, CODE=code).wait() == int(code)
    assert was_queued_again(commands) == again


def test_before_the_end_of_its_time_it_is_told_to_save_and_queued_again(commands):
    running = job(commands, WAITS="1")
    wait_for(commands.parent / "torchrun", lines=4)
    running.send_signal(signal.SIGUSR1)
    assert running.wait(60) == 1
    assert (commands.parent / "saved").read_text() == "saved\nsaved\n"
    assert was_queued_again(commands)
    assert "SIGUSR1 240" in (commands.parent / "torchrun").read_text()


@pytest.mark.slow
def test_torchrun_passes_the_signal_on_and_waits(commands):
    """The launchers are real, and two processes of each; what they start only knows how to save."""
    (commands / "torchrun").unlink()
    (commands.parent / "train.py").write_text(TRAINING)
    (commands / "scontrol").write_text(
        f"#!/bin/bash\n{SCONTROL.replace('gpu[3-4]', 'this').replace('gpu3', '127.0.0.1')}"
    )
    running = job(commands, "this", SLURM_GPUS_ON_NODE="2")
    wait_for(*(commands.parent / f"up{rank}" for rank in range(4)))
    running.send_signal(signal.SIGUSR1)
    assert running.wait(120) == 1
    assert all((commands.parent / f"saved{rank}").exists() for rank in range(4))
    assert was_queued_again(commands)
