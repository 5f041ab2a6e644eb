"""scripts/benchmark_training.py from the outside: figures for a tiny shape, one line for what a user gets wrong."""

import json

import pytest

from modeling.visual_plan import VisualPlan

SHAPE = (
    "--hidden-size",
    "64",
    "--layers",
    "2",
    "--visual-tokens",
    "16",
    "--text-tokens",
    "24",
    "--batch-size",
    "2",
    "--repeats",
    "1",
)


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.json"
    VisualPlan.dense(2).replace(0, attend=False, ffn=0).save(path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whole_steps_are_timed(run, plan, tmp_path, dtype):
    done = run(*SHAPE, "--rank", 2, "--plan", plan, "--dtype", dtype, "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert 0 < report["visual_flops"] < 1
    assert set(report["step_seconds"]) == {"dense", "distil", "distil_kept"}
    assert report["tokens"] == 2 * (16 + 24) and report["step_memory_bytes"]["dense"] is None  # a CPU does not tell it
    for ratios in report["speedup"].values():
        assert 0 < ratios["least"] <= ratios["median"] <= ratios["greatest"]


def test_bad_arguments_are_one_line(run, plan):
    for arguments, message in (
        ((*SHAPE, "--rank", 0), "--rank: got 0"),
        (("--hidden-size", 65), "hidden size: got 65"),
    ):
        done = run(*arguments, "--plan", plan)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
