"""Run folders of earlier versions go on: their recipe.yaml lacks fields that have come since."""

import pytest
import yaml

from modeling.user_error import UserError
from training.recipe.file import RECIPES, load_recipe
from training.run import Stage, execute


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    monkeypatch.chdir(RECIPES.parent)


def without_new_fields(section: object) -> object:
    """Budgets as they were: planners had visual FLOPs alone."""
    if isinstance(section, dict):
        if set(section) == {"visual_flops", "model_flops", "kv_bytes", "latency"}:
            return {"visual_flops": section["visual_flops"]}
        return {key: without_new_fields(value) for key, value in section.items()}
    return [without_new_fields(item) for item in section] if isinstance(section, list) else section


@pytest.mark.parametrize("name", ["debug", "tiny_sparse", "tiny_frontier", "llava_sparse"])
def test_a_run_of_before_goes_on(name, tmp_path):
    recipe, folder = load_recipe(name), tmp_path / "run"
    stages = [Stage("only", "one", lambda run: {})]
    written = execute(recipe, stages, folder).recipe.model_dump(mode="json")
    old = without_new_fields(written)
    assert old != written
    (folder / "recipe.yaml").write_text(yaml.safe_dump(old))
    execute(recipe, [Stage("only", "one", lambda run: pytest.fail("done before"))], folder)

    changes = {
        "holds a run with another recipe": [{**old, "seed": 5}, {**old, "nonsense": 1}],
        "is damaged": ["nonsense"],
    }
    for message, damage in ((message, damage) for message, damages in changes.items() for damage in damages):
        (folder / "recipe.yaml").write_text(yaml.safe_dump(damage))
        with pytest.raises(UserError, match=message):
            execute(recipe, stages, folder)
