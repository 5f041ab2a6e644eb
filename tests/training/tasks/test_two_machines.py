"""A run on two machines: one launcher on each, over the network, with ZeRO-2."""

import json
import os
import platform
from pathlib import Path

import pytest

from tests.machines import BIN, first_machine, in_namespaces, on_two_machines
from tests.processes import free_port
from training.distillation.callbacks import read_metrics
from training.recipe.file import RECIPES

ROOT = RECIPES.parent

pytestmark = pytest.mark.slow


def launch(tmp_path: Path, folders: list[Path], dense_folder: Path, *overrides: str) -> tuple[list[int], list[str]]:
    """Starts the debug recipe on two machines, each in a folder, and returns exit codes and what was printed."""
    arguments = [
        *("--recipe", "debug", "name=run", f"model.path={dense_folder}", "compare=[]"),
        *("training.micro_batch_size=2", *overrides),
    ]
    launcher = (
        f"{BIN}/torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-id test "
        f"--rdzv-endpoint {first_machine()}:{free_port()} {ROOT}/train.py {' '.join(arguments)}"
    )
    outputs = [tmp_path / f"output{number}" for number in range(2)]
    commands = [f"cd {folder} && {launcher} > {output} 2>&1" for folder, output in zip(folders, outputs, strict=True)]
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    codes = on_two_machines(tmp_path, *commands, environment=environment, timeout=1500)
    return codes, [output.read_text() for output in outputs]


def test_from_data_to_report_with_zero_2(tmp_path, dense_folder):
    shared = tmp_path / "shared"
    shared.mkdir()
    zero2 = f"training.deepspeed={RECIPES}/deepspeed/zero2.json"
    codes, outputs = launch(tmp_path, [shared, shared], dense_folder, zero2)
    assert codes == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    run = shared / "runs" / "run"
    assert json.loads((run / "env.json").read_text())["world_size"] == 2
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row] == [1, 2, 3]
    assert (run / "report.html").exists() and (run / "checkpoint" / "config.json").exists()
    printed = [output.count("stage 1 of") for output in outputs]
    assert sorted(printed) == [0, 1], "one rank prints"


def test_a_folder_that_is_not_shared_is_refused_everywhere(tmp_path, dense_folder):
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    codes, outputs = launch(tmp_path, folders, dense_folder)
    assert 0 not in codes
    second = "machine1" if in_namespaces() else platform.node()
    expected = f"error: runs/run: what rank 0 wrote there is not seen on {second}; use a shared file system"
    for output in outputs:
        assert [line for line in output.splitlines() if line.startswith("error: ")] == [expected], output
        assert 'train.py", line' not in output, "a rank ended with a traceback"
    assert not any((folder / "runs" / "run" / "stages").exists() for folder in folders)
