"""Recipes name files of the project, and run from any working directory."""

import json
from pathlib import Path

import pytest

from modeling.user_error import UserError
from training.recipe import load_recipe
from training.schema import CHECKOUT


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", sorted(path.name for path in (CHECKOUT / "recipes").glob("*.yaml")))
def test_every_recipe_is_read_from_anywhere(name):
    settings = load_recipe(name).model_dump(mode="json")
    model, training = settings.get("model", {}), settings.get("training", {})
    for path in (model.get("config"), training.get("deepspeed")):
        assert path is None or (Path(path).is_absolute() and Path(path).is_file())


def test_the_whole_path_says_which_file_was_taken(elsewhere):
    name = "recipes/deepspeed/zero2.json"
    assert load_recipe("tiny_sparse").training.deepspeed == str(CHECKOUT / name)
    plan = "plan={planner: file, path: recipes/plans/g_search_tiny_llava.json}"
    assert load_recipe("debug", [plan]).plan.path == CHECKOUT / "recipes/plans/g_search_tiny_llava.json"
    (elsewhere / name).parent.mkdir(parents=True)
    (elsewhere / name).write_text(json.dumps({"train_batch_size": "auto"}))
    assert load_recipe("tiny_sparse").training.deepspeed == name, "one's own file goes first"


def test_what_is_no_file_of_the_project_stays_as_it_is():
    assert load_recipe("debug", ["model.path=llava-hf/llava-1.5-7b-hf"]).model.path == "llava-hf/llava-1.5-7b-hf"
    assert load_recipe("debug", ["model.path=data/shapes"]).model.path == "data/shapes"
    assert str(load_recipe("tiny_teacher").teacher.output) == "checkpoints/tiny-llava", "what is written stays here"
    with pytest.raises(UserError, match="deepspeed: no file 'recipes/deepspeed/zero9.json'"):
        load_recipe("debug", ["training.deepspeed=recipes/deepspeed/zero9.json"])
