"""SIGKILL at random moments of a run: whatever it hits, the next start goes on and ends as if there had been none.

The run has everything that takes long in a real one: statistics, a search, gates, distillation under ZeRO-2 and
evaluation, in two processes. Kills are drawn from a seed: SQUINT_KILLS=100 SQUINT_SEED=1 tries a hundred others.
"""

import json
import multiprocessing
import os
import random
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.faults.runs import numbers
from training.distillation.callbacks import read_metrics
from training.recipe.file import RECIPES

pytestmark = pytest.mark.slow

KILLS, SEED = int(os.environ.get("SQUINT_KILLS", "30")), int(os.environ.get("SQUINT_SEED", "0"))
PROCESSES = 2
GATES = {"planner": "gates", "budget": {"visual_flops": 0.3}, "steps": 4, "ffn_blocks": 4, "draws": 3}
LEARNED = ("step", "loss", "cross_entropy", "forward_kl", "grad_norm", "learning_rate", "cost", "target", "read", "ffn")
"""Names in the logs of gates and students that hold no times."""
GREEDY = {"name": "greedy", "plan": {"planner": "greedy", "budget": {"visual_flops": 0.5}}, "distil": True}


def overrides(dense_folder: Path) -> list[str]:
    return [
        f"model.path={dense_folder}",
        f"plan={json.dumps(GATES)}",
        f"compare={json.dumps([GREEDY])}",
        "training.max_steps=10",
        "training.save_steps=2",
        "training.micro_batch_size=2",
        "training.report_to=[]",
        f"training.deepspeed={RECIPES}/deepspeed/zero2.json",
    ]


def rank(number: int, port: int, overrides: list[str], folder: str) -> None:
    """One process of the run, up to the evaluation."""
    os.setsid()  # its own process group, to be killed with all that it started
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(PROCESSES))
    os.environ.update(LOCAL_WORLD_SIZE=str(PROCESSES), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    log = os.open(f"{folder}.{number}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from training.recipe.file import load_recipe
    from training.run import execute
    from training.tasks.sparsify import stages

    recipe = load_recipe("debug", overrides)
    names = [stage.name for stage in stages(recipe)]
    execute(recipe, stages(recipe)[: names.index("evaluate") + 1], Path(folder))


class Starts:
    """Starts runs from a process that has imported everything, so that kills hit work and not imports."""

    def __init__(self, overrides: list[str]):
        self.overrides = overrides
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["training.tasks.sparsify", "deepspeed", __name__])

    def start(self, folder: Path, seconds: float | None) -> bool:
        """Runs for so many seconds, then kills. Returns whether the run had ended by itself."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        ranks = [
            self.context.Process(target=rank, args=(number, port, self.overrides, str(folder)))
            for number in range(PROCESSES)
        ]
        for process in ranks:
            process.start()
        end = time.monotonic() + seconds if seconds is not None else float("inf")
        while time.monotonic() < end and any(process.is_alive() for process in ranks):
            time.sleep(0.02)
            codes = [process.exitcode for process in ranks]
            if any(code not in (None, 0) for code in codes):
                break
        ended = all(process.exitcode == 0 for process in ranks)
        failed = [process.exitcode for process in ranks if process.exitcode not in (None, 0)]
        for process in ranks:
            if process.is_alive():
                os.killpg(process.pid, signal.SIGKILL)
            process.join()
        logs = [Path(f"{folder}.{number}.log").read_text()[-3000:] for number in range(PROCESSES)]
        assert not failed, f"a start ended by itself with {failed}:\n" + "\n".join(logs)
        return ended


def results(folder: Path) -> dict:
    """What a run has found: plans, losses and answers."""
    found: dict = {str(path.relative_to(folder)): json.loads(path.read_text()) for path in folder.glob("plans/*")}
    for path in folder.rglob("trainer/*.jsonl"):
        rows = [{name: row[name] for name in LEARNED if name in row} for row in read_metrics(path)]
        found[str(path.relative_to(folder))] = [row for row in rows if len(row) > 1]
    for path in folder.glob("evaluation/*.json"):
        records = json.loads(path.read_text())["records"]
        found[str(path.relative_to(folder))] = [[record["id"], record["prediction"]] for record in records]
    return found


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.endswith(".jsonl"):
            assert [sorted(row) for row in found[name]] == [sorted(row) for row in value], name
            assert numbers(found[name]) == pytest.approx(numbers(value), rel=1e-5, abs=1e-8), name
        else:
            assert found[name] == value, name


def test_a_run_that_is_killed_at_random_ends_as_one_that_is_not(dense_folder, tmp_path):
    starts, random_moments = Starts(overrides(dense_folder)), random.Random(SEED)
    assert starts.start(tmp_path / "reference", None)
    begin = time.monotonic()
    assert starts.start(tmp_path / "again", None)
    duration = time.monotonic() - begin
    expected = results(tmp_path / "reference")
    assert len(expected) == 2 + 4 + 4, "plans, logs of gates and students, answers"
    assert_equal(results(tmp_path / "again"), expected)

    kills = number = 0
    while True:
        folder = tmp_path / f"killed_{number}"
        while not starts.start(folder, random_moments.uniform(0, duration) if kills < KILLS else None):
            kills += 1
            done = sorted(path.stem for path in (folder / "stages").glob("*"))
            print(f"kill {kills} after {time.monotonic() - begin:.0f} s: {done}", flush=True)
        assert_equal(results(folder), expected)
        print(f"run {number} ended as the one that was never killed", flush=True)
        number += 1
        if kills >= KILLS:
            break
