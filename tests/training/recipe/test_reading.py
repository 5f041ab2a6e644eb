"""Reading a recipe takes pydantic alone, so that a mistake in it is found without waiting for torch."""

import subprocess
import sys

import pytest

from training.recipe.file import RECIPES

ROOT = RECIPES.parent
SLOW_TO_IMPORT = {"torch", "transformers", "peft", "deepspeed", "datasets", "accelerate", "matplotlib"}


def imported(*command: str) -> tuple[int, set[str]]:
    """Exit code, and the top-level packages that a command imports."""
    done = subprocess.run([sys.executable, "-X", "importtime", *command], cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return done.returncode, {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize("name", ["tiny_sparse", "tiny_planners", "tiny_teacher", "llava_sparse"])
def test_a_recipe_is_read_without_torch(name):
    code, packages = imported("-c", f"from training.recipe import load_recipe; load_recipe({name!r})")
    assert code == 0 and "pydantic" in packages
    assert packages & SLOW_TO_IMPORT == set()


def test_a_misspelt_key_is_found_without_torch():
    code, packages = imported("train.py", "--recipe", "debug", "--dry-run", "training.max_stpes=3")
    assert code == 2
    assert packages & SLOW_TO_IMPORT == set()


@pytest.mark.slow
def test_a_slow_import_would_be_noticed():
    assert "torch" in imported("-c", "import training.run")[1]
