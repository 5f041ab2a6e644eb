"""Whole runs of train.py in small, in processes that are forked from one which has imported everything.

A run is started in a folder of its own, which is the working directory: its files are in runs/run there.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.faults.file_changes import Change, watch
from tests.training.tasks.tiny_dense_recipe import tiny_dense_recipe
from training.distillation.callbacks import read_metrics
from training.recipe.file import RECIPES

KILL_BEFORE = "SQUINT_KILL_BEFORE"
"""Variable of the environment: the number of the change before which a start kills itself."""
NAME = "run"
LONGEST = 3600
"""Seconds after which a start is taken to hang."""
LEARNED = (
    "step", "loss", "cross_entropy", "forward_kl", "grad_norm", "learning_rate", "eval_loss", "cost", "target", "read",
    "ffn",
)  # fmt: skip
"""Names in the logs of gates and students that hold no times."""
START = {"planner": "greedy", "budget": {"visual_flops": 0.5}}
GATES = {"planner": "gates", "budget": {"visual_flops": 0.3}, "steps": 3, "ffn_blocks": 4, "draws": 2, "start": START}
SEARCHED = {"planner": "p_sigmoid", "budget": {"visual_flops": 0.5}, "trials": 5}
COMPARED = [
    {"name": "greedy", "plan": START, "distil": False},
    {"name": "searched", "plan": SEARCHED, "distil": False},
]


def sparsify_arguments(dense_folder: Path) -> list[str]:
    """Arguments of train.py for a run with everything: statistics, searches, gates, kept answers, distillation."""
    return [
        "--recipe",
        str(RECIPES / "debug.yaml"),
        f"name={NAME}",
        f"model.path={dense_folder}",
        f"plan={json.dumps(GATES)}",
        f"compare={json.dumps(COMPARED)}",
        "distillation.keep_answers=true",
        "validation={num_samples: 4, steps: 2}",
        "training.max_steps=6",
        "training.save_steps=1",
        "training.micro_batch_size=2",
        "training.report_to=[]",
        "data.world.splits.test.rows=6",
        "evaluation.batch_size=3",
        "evaluation.max_new_tokens=3",
    ]


def dense_arguments(folder: Path) -> list[str]:
    """Arguments of train.py for a run of `task: dense`, whose recipe is written to `folder`."""
    recipe = tiny_dense_recipe(Path("teacher")).model_dump(mode="json") | {"name": NAME}
    for training in (recipe["teacher"]["tower"], *recipe["teacher"]["phases"]):
        training |= {"save_steps": 1, "steps": 3}
    folder.mkdir(exist_ok=True)
    (folder / "dense.yaml").write_text(yaml.safe_dump(recipe))
    return ["--recipe", str(folder / "dense.yaml")]


class Start(NamedTuple):
    """How a start ended."""

    code: int
    """Exit code; of a signal its negative number."""
    said: list[str]
    """Lines on stderr that begin with `error:` or `stopped:`."""
    log: str
    """All output."""
    seconds: float


class Starts:
    """Starts runs.

    Args:
        arguments: those of train.py.
    """

    def __init__(self, arguments: list[str]):
        self.arguments = arguments
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.faults.warm", __name__])

    def start(
        self,
        folder: Path,
        *more: str,
        before: Callable[[Change], None] | None = None,
        kill_before: int | None = None,
        seconds: float | None = None,
    ) -> Start:
        """Starts the run in a folder, and waits for its end.

        Args:
            folder: is made if it is missing.
            more: further arguments of train.py.
            before: is called before each change in the folder. It can be pickled.
            kill_before: number of the change before which the start kills itself.
            seconds: after so many the start is killed; None waits.
        """
        folder.mkdir(parents=True, exist_ok=True)
        log = folder.with_name(f"{folder.name}.log")
        log.unlink(missing_ok=True)
        begin = time.monotonic()
        arguments = ([*self.arguments, *more], str(folder), str(log), before, kill_before)
        process = self._context.Process(target=_run, args=arguments)
        process.start()
        process.join(LONGEST if seconds is None else seconds)
        if hangs := process.is_alive():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.join()
        text = log.read_text(errors="replace") if log.exists() else ""
        assert not hangs or seconds is not None, f"{folder}: no end in {LONGEST} seconds:\n{text[-3000:]}"
        said = [line for line in text.splitlines() if line.startswith(("error:", "stopped:"))]
        return Start(process.exitcode, said, text, time.monotonic() - begin)

    def finish(self, folder: Path) -> Start:
        """Starts the run, which must end well."""
        ended = self.start(folder)
        assert ended.code == 0, f"{folder}: a start ended with {ended.code}:\n{ended.log[-3000:]}"
        return ended


def kill_at(number: int, change: Change) -> None:
    if change.number == number:
        os.kill(os.getpid(), signal.SIGKILL)


def _run(
    arguments: list[str], folder: str, log: str, before: Callable[[Change], None] | None, kill_before: int | None
) -> None:
    """One start of train.py, in a process of its own."""
    os.setsid()  # its own process group, to be killed with all that it started
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    os.chdir(folder)
    torch.set_num_threads(1)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
    without_what_takes_long()
    import train
    from training import cli

    if kill_before is not None:
        os.environ[KILL_BEFORE] = str(kill_before)
    if KILL_BEFORE in os.environ:
        number = int(os.environ[KILL_BEFORE])
        watch(folder, lambda change: kill_at(number, change))
    if before is not None:
        watch(folder, before)
    sys.argv = ["train.py", *arguments]
    cli.run(train.main)


def without_what_takes_long() -> None:
    """The fresh process that loads an exported checkpoint, repeated timings and plots write nothing by themselves."""
    import checkpoints.export
    import training.report.page
    import training.tasks.sparsify

    training.report.page.render = lambda *arguments: "<html></html>\n"
    checkpoints.export.verify = lambda *arguments: None
    training.tasks.sparsify.BATCH_SIZES = (1,)
    benchmark = training.tasks.sparsify.benchmark
    training.tasks.sparsify.benchmark = lambda *given, **settings: benchmark(
        *given, **settings | {"repeats": 1, "decode_tokens": 2}
    )


def results(folder: Path) -> dict:
    """What a run has found: stages, plans, losses, answers, costs, and all weights."""
    run, found = folder / "runs" / NAME, {}
    found["stages"] = sorted(path.stem for path in run.glob("stages/*.json"))
    for pattern in ("plans/*.json", "plan.json", "cost.json", "table.json", "gates/*/start.json", "*/*/hardening.json"):
        for path in run.glob(pattern):
            found[str(path.relative_to(run))] = json.loads(path.read_text())
    for path in (*run.rglob("trainer/*.jsonl"), *run.rglob("metrics.jsonl")):
        rows = [{name: row[name] for name in LEARNED if name in row} for row in read_metrics(path)]
        found[str(path.relative_to(run))] = [row for row in rows if len(row) > 1]
    for path in run.glob("evaluation/*.json"):
        records = json.loads(path.read_text())["records"]
        found[str(path.relative_to(run))] = [[record["id"], record["prediction"]] for record in records]
    for path in (*folder.rglob("*.safetensors"),):
        if "calibration" not in path.name:
            found[str(path.relative_to(folder))] = load_file(path)
    found["files"] = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith((".arrow", ".lock", ".guard"))
    )
    return found


def assert_equal(found: dict, expected: dict) -> None:
    """Raises AssertionError unless two runs have found the same. Figures may differ by rounding."""
    assert found["files"] == expected["files"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.endswith(".safetensors"):
            assert found[name].keys() == value.keys(), name
            for tensor in value:
                torch.testing.assert_close(found[name][tensor], value[tensor], rtol=1e-5, atol=1e-6)
        elif name.endswith((".jsonl", "hardening.json", "cost.json", "table.json")):
            assert _shape(found[name]) == _shape(value), name
            assert numbers(found[name]) == pytest.approx(numbers(value), rel=1e-5, abs=1e-8), name
        else:
            assert found[name] == value, name


def numbers(value) -> list[float]:
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, int | float) else []


def _shape(value):
    if isinstance(value, dict):
        return {key: _shape(value[key]) for key in value}
    if isinstance(value, list):
        return [_shape(item) for item in value]
    return None if isinstance(value, int | float) else value


# ---- what a kill before each change would leave ----


_kept: set[str] = set()
"""Hashes of the states that this process has kept."""


def keep_state(cases: str, change: Change) -> None:
    """Copies the working directory to a folder in `cases`, as SIGKILL before this change would leave it.

    A second copy is what it would leave a moment later, where a file was opened: empty, or with half a line more. A
    state that was there before is not copied again.
    """
    here = Path.cwd()
    state = Path(cases) / f"{change.number:04d}"
    _copy(here, state)
    _forget_if_known(state)
    if change.kind == "open" and not os.path.isdir(change.path):  # one without a name is opened as its folder
        torn = Path(cases) / f"{change.number:04d}-torn"
        _copy(here, torn)
        path = torn / Path(change.path).relative_to(here)
        with path.open("a" if change.appends else "w") as file:
            file.write('{"half": "a li' if change.appends else "")
        _forget_if_known(torn)
    with (Path(cases) / "changes.txt").open("a") as file:
        file.write(f"{change.number} {change.kind} {os.path.relpath(change.path, here)}\n")


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True)


def _forget_if_known(case: Path) -> None:
    digest = hashlib.sha256()
    for path in sorted(case.rglob("*")):
        digest.update(f"{path.relative_to(case)} {path.is_dir()}\0".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    if digest.hexdigest() in _kept:
        shutil.rmtree(case)
    _kept.add(digest.hexdigest())
