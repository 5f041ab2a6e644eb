"""Tasks that train dense models, whole, by two processes of the launcher: each stage ends, all questions are asked."""

import json
from pathlib import Path

import pytest
import yaml

from tests.processes import free_port
from tests.training.tasks.test_real_recipes import LAUNCHER, finish
from tests.training.tasks.tiny_dense_recipe import tiny_dense_recipe
from tests.training.tasks.tiny_instruct_recipe import save_instruct_inputs, tiny_instruct_recipe
from training.recipe.file import RECIPES


def run_of(recipe, folder: Path, processes: int) -> Path:
    """Runs a recipe in a new folder, and returns the folder of the run."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    launcher = [LAUNCHER, "--num_gpus", str(processes), "--master_port", str(free_port())]
    finish([*launcher, RECIPES.parent / "train.py", "--recipe", "recipe.yaml"], folder)
    return folder / recipe.folder


def asks_as_one(run: Path, alone: Path) -> None:
    """Checks that two processes ask what one process asks, and share it."""
    for name in ("teacher", "grey"):
        both = [json.loads((folder / "evaluation" / f"{name}.json").read_text())["records"] for folder in (run, alone)]
        assert [record["id"] for record in both[0]] == [record["id"] for record in both[1]]
    assert json.loads((run / "env.json").read_text())["world_size"] == 2


@pytest.mark.slow
def test_dense(tmp_path):
    runs = [run_of(tiny_dense_recipe(tmp_path / f"out{count}"), tmp_path / str(count), count) for count in (2, 1)]
    asks_as_one(*runs)
    assert (tmp_path / "out2" / "model.safetensors").exists()


@pytest.mark.slow
def test_instruct(tmp_path):
    save_instruct_inputs(tmp_path)
    runs = []
    for count in (2, 1):
        recipe = tiny_instruct_recipe(tmp_path, output=str(tmp_path / f"taught{count}"))
        runs.append(run_of(recipe, tmp_path / str(count), count))
    asks_as_one(*runs)
    features = [sorted((run / "features").iterdir()) for run in runs]
    assert [path.name for path in features[0]] == [path.name for path in features[1]]
    assert all(mine.read_bytes() == other.read_bytes() for mine, other in zip(*features, strict=True))
    assert (tmp_path / "taught2" / "model.safetensors").exists()
