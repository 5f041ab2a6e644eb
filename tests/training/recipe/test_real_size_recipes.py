"""The recipes of released models: what must be equal in all of them is equal."""

from collections.abc import Iterator

import pytest
import yaml

from training.recipe.file import RECIPES

FREE = {
    "name",
    "model.path",
    "model.config",
    "model.max_pixels",  # where a picture keeps its resolution
    "plan",
    "data.max_length",  # more tokens where a picture has more
    "data.evaluation",  # the benchmarks that papers print for a family
    "training.deepspeed",
    "training.micro_batch_size",  # only its product with the next is fixed
    "training.gradient_accumulation_steps",
    "evaluation.batch_size",  # the largest model leaves room for fewer
    "training.save_steps",  # more often where gates are learned in few steps
}
"""Keys in which recipes differ because their models or their methods do."""
OF_FULL_FINE_TUNING = {"lora", "distillation", "training.learning_rate"}
"""Further keys in which YOPO's recipes, trained as published, differ from those with LoRA."""


def leaves(section: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(section, dict):
        for key, value in section.items():
            yield from leaves(value, f"{path}.{key}" if path else key)
    else:
        yield path, section


def fixed(recipe: dict, free: set[str]) -> dict[str, object]:
    """Path -> value of everything outside the free keys."""
    return {path: value for path, value in leaves(recipe) if not any(f"{path}.".startswith(f"{key}.") for key in free)}


def read(path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


ALL = {path.stem: read(path) for path in sorted(RECIPES.glob("*.yaml"))}
REAL = {name: recipe for name, recipe in ALL.items() if recipe.get("model", {}).get("config")}
WITH_LORA = {name: recipe for name, recipe in REAL.items() if recipe["lora"] is not None}
FULL = {name: recipe for name, recipe in REAL.items() if recipe["lora"] is None}


def test_there_are_both_kinds():
    assert len(WITH_LORA) == 13 and len(FULL) == 4


@pytest.mark.parametrize("name", WITH_LORA)
def test_recipes_with_lora_are_equal_where_they_must_be(name):
    assert fixed(WITH_LORA[name], FREE) == fixed(REAL["llava_sparse"], FREE)


@pytest.mark.parametrize("name", FULL)
def test_recipes_of_full_fine_tuning_are_equal_where_they_must_be(name):
    assert fixed(FULL[name], FREE) == fixed(REAL["llava_yopo_12"], FREE)
    free = FREE | OF_FULL_FINE_TUNING
    assert fixed(FULL[name], free) == fixed(REAL["llava_sparse"], free)


@pytest.mark.parametrize("name", REAL)
def test_every_recipe_has_the_same_global_batch(name):
    training = REAL[name]["training"]
    assert training["micro_batch_size"] * training["gradient_accumulation_steps"] == 16


def test_recipes_of_one_model_agree_on_it():
    shapes: dict[str, set] = {}
    for recipe in REAL.values():
        (asked,) = recipe["data"]["evaluation"]
        of_model = (recipe["model"]["config"], recipe["data"]["max_length"], *asked["benchmarks"])
        shapes.setdefault(recipe["model"]["path"], set()).add(of_model)
    assert all(len(found) == 1 for found in shapes.values()), shapes


def test_a_difference_is_noticed():
    changed = {**REAL["llava_sparse"], "calibration": {"num_samples": 64, "batch_size": 4}}
    assert fixed(changed, FREE) != fixed(REAL["llava_sparse"], FREE)
