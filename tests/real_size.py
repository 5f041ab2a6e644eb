"""Runs a recipe of a released LLaVA-1.5 at its real size, with random weights, on a machine with a GPU.

    python -m tests.real_size /tmp/real llava_sparse training.max_steps=24 'plan.steps=8'

All is the recipe's own (layers, plan, DeepSpeed, checkpointing, LoRA) but for what is learned from: 360 rows of the
embedded world, of which every third is text alone, and two questions of each benchmark. Weights are made once.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

from data.shapes.world import SplitSettings, WorldSettings, write_world
from tests.benchmark_files.all_benchmarks import write_all
from tests.processes import free_port
from training.recipe.file import RECIPES

ROWS = 360
TINY_LLAVA = RECIPES.parent / "checkpoints" / "tiny-llava"


def write_model(config_file: Path, folder: Path) -> None:
    """Writes a model of this shape, random weights in bfloat16, with the tiny LLaVA's tokenizer and processor."""
    processor = AutoProcessor.from_pretrained(TINY_LLAVA)
    tokenizer = processor.tokenizer
    values = json.loads(config_file.read_text(encoding="utf-8"))
    values["image_token_index"] = tokenizer.convert_tokens_to_ids(processor.image_token)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    values["pad_token_id"] = ids["pad_token_id"]
    values["text_config"] |= ids
    config = LlavaConfig.from_dict(values)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    side = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    processor.image_processor.size = processor.image_processor.crop_size = side
    processor.patch_size = config.vision_config.patch_size
    processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    processor.save_pretrained(folder)


def write_rows(folder: Path, count: int) -> Path:
    """Writes a LLaVA JSON, of which every third row is text alone, and small files of all benchmarks beside it.

    Returns the file of rows.
    """
    world = WorldSettings(seed=3, splits={"train": SplitSettings(part="train", rows=count)})
    path = write_world(folder, world)["train"]
    rows = json.loads(path.read_text(encoding="utf-8"))
    for row in rows[::3]:
        del row["image"]
        row["conversations"][0]["value"] = row["conversations"][0]["value"].removeprefix("<image>\n")
    mixed = path.with_name("mixed.json")
    mixed.write_text(json.dumps(rows), encoding="utf-8")
    write_all(path.parent / "benchmarks", "hub")
    return mixed


def command(name: str, folder: Path, rows: Path, overrides: list[str]) -> list[str]:
    """Returns the command that runs the recipe in `folder` on one GPU."""
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    source = {"path": str(rows), "images": str(rows.parent)}
    benchmarks = {"hub": None, "path": str(rows.parent / "benchmarks"), "num_questions": 2}
    settings = {
        "model.path": str(folder / "dense"),
        "data.train": [source],
        "data.calibration": [source | {"num_samples": 24}],
        "data.evaluation": [entry | benchmarks for entry in recipe["data"]["evaluation"]],
        "calibration": {"num_samples": 4, "batch_size": 4},
        "validation": {"num_samples": 8, "steps": 10},
        "training.num_epochs": None,
        "training.deepspeed": str(RECIPES.parent / recipe["training"]["deepspeed"]),
        "training.logging_steps": 1,
        "evaluation": {"batch_size": 8, "max_new_tokens": 3},
    }
    launcher = ["deepspeed", "--num_gpus", "1", "--master_port", str(free_port())]
    given = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return [*launcher, str(RECIPES.parent / "train.py"), "--recipe", name, *given, *overrides]


def main() -> None:
    folder, name, overrides = Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3:]
    if not (folder / "dense").exists():
        recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
        write_model(RECIPES.parent / recipe["model"]["config"], folder / "dense.partial")
        os.rename(folder / "dense.partial", folder / "dense")
    sys.exit(
        subprocess.run(command(name, folder, write_rows(folder / "world", ROWS), overrides), cwd=folder).returncode
    )


if __name__ == "__main__":
    main()
