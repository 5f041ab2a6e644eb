"""Trackers: one run for each training, named by recipe and student, with the recipe."""

import importlib
import sys
from contextlib import nullcontext

import pytest

from tests.training.distillation.test_trainer import COLLATOR, DATASET, LOSSES, student
from training.distillation import trainer as trainer_module
from training.distillation.arguments import training_arguments
from training.distillation.trainer import DistillationTrainer
from training.recipe.file import RECIPES, load_recipe
from training.recipe.student import StudentRecipe

# What transformers asks of wandb, and a list of what it was asked.
FAKE_WANDB = """
from types import SimpleNamespace
asked, run = [], None
class Config(dict):
    def update(self, values, allow_val_change=False):
        super().update(values)
config = Config()
def init(**arguments):
    global run
    run = SimpleNamespace(summary={}, _label=lambda **labels: None)
    config.clear()
    asked.append(("init", arguments))
def finish():
    global run
    run = None
    asked.append(("finish", dict(config)))
def define_metric(*names, **settings): pass
def log(values):
    asked.append(("log", values))
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    package = tmp_path / "packages" / "wandb"
    (package / "sdk" / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE_WANDB)
    for folder in ("sdk", "sdk/lib"):
        (package / folder / "__init__.py").touch()
    (package / "sdk" / "lib" / "config_util.py").write_text("class ConfigError(Exception): pass\n")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    yield importlib.import_module("wandb")
    for name in [name for name in sys.modules if name.split(".")[0] == "wandb"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def recipe() -> StudentRecipe:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(RECIPES.parent)
        settings = ["training.max_steps=1", "training.warmup_ratio=0.0", "training.report_to=[wandb, tensorboard]"]
        return load_recipe("debug", settings)


def distil(recipe: StudentRecipe, folder, name: str, callbacks=()) -> None:
    DistillationTrainer(
        model=student(),
        args=training_arguments(recipe.training, folder / name / "trainer", 5, f"{recipe.name}/{name}", recipe),
        train_dataset=DATASET,
        data_collator=COLLATOR,
        distillation=LOSSES,
        callbacks=list(callbacks),
    ).train()


def runs(wandb) -> list[list[tuple]]:
    """What was asked for, from one `init` to the next."""
    found: list[list[tuple]] = []
    for event in wandb.asked:
        if event[0] == "init":
            found.append([])
        found[-1].append(event)
    return found


def test_each_student_has_a_run_of_its_own(wandb, recipe, tmp_path):
    for name in ("student", "yopo"):
        distil(recipe, tmp_path, name)
    both = runs(wandb)
    assert [events[0][1] for events in both] == [
        {"project": "squint", "group": "debug", "name": f"debug/{name}"} for name in ("student", "yopo")
    ]
    for events in both:
        assert [kind for kind, _ in events] == ["init", "log", "log", "finish"]
        assert {"train/loss", "train/tokens_per_second", "train/padding_share"} <= events[1][1].keys()
        assert events[-1][1]["recipe"] == recipe.model_dump(mode="json")
    for name in ("student", "yopo"):
        assert list((tmp_path / name / "trainer" / "runs").rglob("events.*")), "TensorBoard's files"


def test_a_users_project_is_kept(wandb, recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_RUN_GROUP", "ours")
    distil(recipe, tmp_path, "student")
    assert runs(wandb)[0][0][1] == {"project": "mine", "group": "ours", "name": "debug/student"}


@pytest.mark.slow
def test_transformers_alone_would_give_all_students_one_run(wandb, recipe, tmp_path, monkeypatch):
    """The negative control."""
    monkeypatch.setattr(trainer_module, "tracker_run", nullcontext)
    for name in ("student", "yopo"):
        distil(recipe, tmp_path, name)
    (events,) = runs(wandb)
    assert events[0][1] == {"project": "huggingface", "name": "debug/student"}
