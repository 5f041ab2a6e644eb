"""The recipes of released models, each with its own settings, on tiny random weights of its family.

Two processes run them under DeepSpeed, from the data to the exported checkpoint. A third of the rows has no picture, so
that in some steps one rank has a picture and the other has none, and in some steps none has.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from checkpoints.load import load_checkpoint
from modeling.visual_plan import VisualPlan
from tests.families.family import TinyFamily
from tests.families.internvl import INTERNVL
from tests.families.llava import LLAVA
from tests.families.llava_next import LLAVA_NEXT
from tests.families.qwen2_vl import QWEN2_VL
from tests.processes import free_port
from tests.real_size import write_rows
from training.distillation.callbacks import read_metrics
from training.recipe.file import RECIPES

LAUNCHER = Path(sys.executable).with_name("deepspeed")
FAMILIES = {family.name: family for family in (*LLAVA, *LLAVA_NEXT, QWEN2_VL, *INTERNVL)}
FAMILY_OF_SHAPE = {
    "llava-1.5-7b": "llava_llama",
    "llava-1.5-13b": "llava_llama",
    "llava-next-7b": "llava_next_llama",
    "qwen2-vl-7b": "qwen2_vl",
    "internvl2-4b": "internvl_phi3",
    "internvl2-8b": "internvl_llama",  # InternLM2 becomes Llama
    "internvl2-26b": "internvl_llama",
}
RECIPE = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(RECIPES.glob("*.yaml"))}
REAL = [name for name, recipe in RECIPE.items() if recipe.get("model", {}).get("config")]
QUICK = ("llava_13b_yopo_25", "llava_sparse")
"""Two are in every run of the tests: one of ZeRO-3, and one that learns its plan, of ZeRO-2."""
# The tiny decoders have three layers, and their plans are found on a few samples.
PLANS = {
    "yopo": {"withdraw_from": 2, "whole_layers": 1},
    "p_sigmoid": {"full_layers": 1, "trials": 3, "budget": {"visual_flops": 0.6}},
    "g_search": {"full_layers": 1, "trials": 2},
    "vtw": {"hold_out": 0.5},
    "gates": {
        "budget": {"visual_flops": 0.5},
        "start": {"planner": "greedy", "budget": {"visual_flops": 0.7}},
        "steps": 6,
        "ffn_blocks": 4,
        "draws": 2,
    },
}
DISTILLATION_STEPS = 4
SMALL = {
    "calibration": {"num_samples": 4, "batch_size": 2},
    "validation": {"num_samples": 3, "steps": 2},
    "training.num_epochs": None,
    "training.micro_batch_size": 1,
    "training.gradient_accumulation_steps": 2,
    "training.num_workers": 1,
    "training.logging_steps": 1,
    "training.save_steps": 3,
    "evaluation": {"batch_size": 4, "max_new_tokens": 3},
}


def family_of(name: str) -> TinyFamily:
    return FAMILIES[FAMILY_OF_SHAPE[Path(RECIPE[name]["model"]["config"]).stem]]


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("world"), 24)


def command_of(name: str, rows: Path, folder: Path, processes: int) -> list:
    """Returns the command that runs the recipe, small, in `folder`, where it puts a dense model of the family."""
    family, recipe = family_of(name), RECIPE[name]
    family.dense().save_pretrained(folder / "dense")
    family.processor().save_pretrained(folder / "dense")
    source = [{"path": str(rows), "images": str(rows.parent)}]
    benchmarks = {"hub": None, "path": str(rows.parent / "benchmarks"), "num_questions": 1}
    plan = {**recipe["plan"], **PLANS[recipe["plan"]["planner"]]}
    small = {
        **SMALL,
        "model.path": str(folder / "dense"),
        "data.train": source,
        "data.calibration": source,
        "data.evaluation": [entry | benchmarks for entry in recipe["data"]["evaluation"]],
        "training.deepspeed": str(RECIPES.parent / recipe["training"]["deepspeed"]),
        "training.max_steps": DISTILLATION_STEPS + plan.get("steps", 0),
        "plan": plan,
    }
    launcher = [LAUNCHER, "--num_gpus", str(processes), "--master_port", str(free_port())]
    command = [*launcher, RECIPES.parent / "train.py", "--recipe", name]
    return [*command, *(f"{key}={json.dumps(value)}" for key, value in small.items())]


def finish(command: list, folder: Path) -> None:
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(folder / "compiled")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Traceback" not in done.stderr, "a rank died on its way out"
    assert not (folder / "compiled").exists(), "a training needs no op of DeepSpeed's own"


@pytest.fixture(scope="module")
def whole_run(rows, tmp_path_factory) -> Callable[[str], Path]:
    """Runs a recipe on two processes, once: whole_run(name) gives the run's folder."""

    @cache
    def run(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        finish(command_of(name, rows, folder, 2), folder)
        return folder / "runs" / name

    return run


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in REAL]
)
def test_a_recipe_of_a_released_model_goes_from_data_to_a_checkpoint(name, whole_run):
    run = whole_run(name)
    losses = [row["loss"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row]
    assert len(losses) == DISTILLATION_STEPS and all(torch.isfinite(torch.tensor(losses)))
    model, _ = load_checkpoint(run / "checkpoint", torch.float32)
    assert model.visual_plan.is_integer
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert 0 < result["visual_flops"] < 1 and result["prefill_speedup"] > 0
    assert list(result["benchmarks"]) == RECIPE[name]["data"]["evaluation"][0]["benchmarks"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava_sparse", "llava_13b_sparse", "internvl2_8b_sparse", "qwen2_vl_sparse"])
def test_plans_are_learned_with_a_recipes_own_settings(name, rows, whole_run, tmp_path):
    """Gradient checkpointing is on in all of them. A run that is killed meanwhile learns the same plan."""
    assert RECIPE[name]["training"]["gradient_checkpointing"]
    command = command_of(name, rows, tmp_path, 2)
    trainer = Path("gates", "student", "trainer")
    run = tmp_path / "runs" / name
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while process.poll() is None and not list((run / trainer).glob("checkpoint-3/trainer_state.json")):
            time.sleep(0.02)
        assert process.poll() is None, "it ended before a checkpoint of its gates was seen"
        os.killpg(process.pid, signal.SIGKILL)
    state = next((run / trainer / "checkpoint-3").glob("global_step3/*_rank_1_*optim_states.pt"))
    zero = torch.load(state, weights_only=False)["optimizer_state_dict"]["zero_stage"].value
    assert f"zero{zero}.json" == Path(RECIPE[name]["training"]["deepspeed"]).name
    assert not (run / "gates" / "student" / "weights").exists(), "it was killed too late to show anything"
    finish(command, tmp_path)

    learned, expected = (
        [row for row in read_metrics(folder / trainer / "metrics.jsonl") if "cost" in row]
        for folder in (run, whole_run(name))
    )
    assert [row["step"] for row in learned] == list(range(1, 7))
    for figure in ("loss", "cost", "target"):
        assert [row[figure] for row in learned] == pytest.approx([row[figure] for row in expected], rel=1e-4), figure
    plans = [VisualPlan.load(folder / "plan.json") for folder in (run, whole_run(name))]
    assert plans[0] == plans[1]
    assert json.loads((run / "result.json").read_text(encoding="utf-8"))["visual_flops"] <= 0.5
