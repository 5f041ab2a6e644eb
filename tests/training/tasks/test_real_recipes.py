"""The recipes of released models, each with its own settings, on tiny random weights of its family.

Two processes run them under DeepSpeed, from the data to the exported checkpoint. A third of the rows has no picture, so
that in some steps one rank has a picture and the other has none, and in some steps none has.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from checkpoints.load import load_checkpoint
from data.shapes.world import SplitSettings, WorldSettings, write_world
from tests.families.family import TinyFamily
from tests.families.internvl import INTERNVL
from tests.families.llava import LLAVA
from tests.families.llava_next import LLAVA_NEXT
from tests.families.qwen2_vl import QWEN2_VL
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
QUICK = ("llava_13b_sparse",)
"""One of ZeRO-3 is in every run of the tests."""
# The tiny decoders have three layers, and their plans are found on a few samples.
PLANS = {
    "yopo": {"withdraw_from": 2, "whole_layers": 1},
    "p_sigmoid": {"full_layers": 1, "trials": 3, "budget": {"visual_flops": 0.6}},
    "g_search": {"full_layers": 1, "trials": 2},
    "vtw": {},
    "greedy": {"budget": {"visual_flops": 0.5}},
}
SMALL = {
    "data.world.splits.test.rows": 4,
    "calibration": {"num_samples": 4, "batch_size": 2},
    "training.num_epochs": None,
    "training.max_steps": 4,
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
    """A LLaVA JSON of 24 rows, of which every third is text alone."""
    world = WorldSettings(seed=3, splits={"train": SplitSettings(part="train", rows=24)})
    path = write_world(tmp_path_factory.mktemp("world"), world)["train"]
    content = json.loads(path.read_text(encoding="utf-8"))
    for row in content[::3]:
        del row["image"]
        row["conversations"][0]["value"] = row["conversations"][0]["value"].removeprefix("<image>\n")
    mixed = path.with_name("mixed.json")
    mixed.write_text(json.dumps(content), encoding="utf-8")
    return mixed


def run_recipe(name: str, rows: Path, folder: Path, processes: int, *more: str) -> Path:
    """Runs the recipe, small, and returns its run's folder."""
    family, plan = family_of(name), RECIPE[name]["plan"]
    family.dense().save_pretrained(folder / "dense")
    family.processor().save_pretrained(folder / "dense")
    source = [{"path": str(rows), "images": str(rows.parent)}]
    small = {
        **SMALL,
        "model.path": str(folder / "dense"),
        "data.train": source,
        "data.calibration": source,
        "training.deepspeed": str(RECIPES.parent / RECIPE[name]["training"]["deepspeed"]),
        "plan": {**plan, **PLANS[plan["planner"]]},
    }
    command = [LAUNCHER, "--num_gpus", str(processes), RECIPES.parent / "train.py", "--recipe", name]
    command += [f"{key}={json.dumps(value)}" for key, value in small.items()]
    done = subprocess.run([*command, *more], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Traceback" not in done.stderr, "a rank died on its way out"
    return folder / "runs" / name


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in REAL]
)
def test_a_recipe_of_a_released_model_goes_from_data_to_a_checkpoint(name, rows, tmp_path):
    run = run_recipe(name, rows, tmp_path, 2)
    losses = [row["loss"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row]
    assert len(losses) == 4 and all(torch.isfinite(torch.tensor(losses)))
    model, _ = load_checkpoint(run / "checkpoint", torch.float32)
    assert model.visual_plan.is_integer
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert 0 < result["visual_flops"] < 1 and result["prefill_speedup"] > 0


GATES = {"planner": "gates", "budget": {"visual_flops": 0.5}, "steps": 3, "ffn_blocks": 4, "draws": 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava_sparse", "llava_13b_sparse", "internvl2_8b_sparse", "qwen2_vl_sparse"])
def test_plans_are_learned_with_a_recipes_own_settings(name, rows, tmp_path):
    """Gradient checkpointing is on in all of them."""
    assert RECIPE[name]["training"]["gradient_checkpointing"]
    run = run_recipe(name, rows, tmp_path, 2, f"plan={json.dumps(GATES)}", "training.max_steps=5")
    learned = [row for row in read_metrics(run / "gates" / "student" / "trainer" / "metrics.jsonl") if "cost" in row]
    assert [row["step"] for row in learned] == [1, 2, 3]
    assert json.loads((run / "result.json").read_text(encoding="utf-8"))["visual_flops"] <= 0.5
