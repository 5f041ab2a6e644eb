"""`task: dense` in small: every stage, a stop in between, and what comes out."""

import json

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

import training.tasks.dense
from data.shapes.questions import QUESTION_FAMILIES
from tests.training.tasks.tiny_dense_recipe import tiny_dense_recipe
from training.run import Stage, execute
from training.tasks.dense import stages


@pytest.fixture(autouse=True)
def worlds(tmp_path, monkeypatch):
    monkeypatch.setattr(training.tasks.dense, "WORLDS", tmp_path / "worlds")


def test_a_run_ends_in_an_ordinary_llava_folder_and_survives_a_stop(tmp_path):
    recipe = tiny_dense_recipe(tmp_path / "teacher")
    all_stages = stages(recipe)
    assert [stage.name for stage in all_stages] == ["world", "tower", "apart", "together", "evaluate", "export"]

    def stop(run):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(recipe, [*all_stages[:3], Stage("together", "stopped", stop)], tmp_path / "run")
    assert not (tmp_path / "teacher").exists()
    run = execute(recipe, all_stages, tmp_path / "run")

    assert run.result("apart")["steps"] == run.result("together")["steps"] == 2
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "teacher")
    processor = AutoProcessor.from_pretrained(tmp_path / "teacher")
    assert model.dtype == torch.bfloat16 and type(processor).__name__ == "LlavaProcessor"
    assert model.lm_head.weight is model.get_input_embeddings().weight
    card = (tmp_path / "teacher" / "README.md").read_text()
    assert all(f"| {family} |" in card for family in QUESTION_FAMILIES)
    teacher = json.loads((tmp_path / "run" / "evaluation" / "teacher.json").read_text())
    assert len(teacher["records"]) == 12
    # Training moved every part, the tower too.
    before = LlavaForConditionalGeneration.from_pretrained(tmp_path / "run" / "phases" / "apart" / "model")
    for name in ("model.vision_tower", "model.multi_modal_projector", "model.language_model.layers.1"):
        old, new = (dict(m.float().get_submodule(name).named_parameters()) for m in (before, model))
        assert any((old[key].bfloat16() != new[key].bfloat16()).any() for key in old), name


@pytest.mark.slow
def test_a_phase_that_was_stopped_ends_as_one_that_was_not(tmp_path, monkeypatch):
    phase = {"name": "one", "split": "train", "steps": 4, "save_steps": 2, "micro_batch_size": 4, "learning_rate": 1e-3}
    phase |= {"warmup_steps": 0, "tower_learning_rate": 1e-4, "word_learning_rate": 1e-4, "turns": "independent"}
    recipe = tiny_dense_recipe(tmp_path / "teacher", phases=[phase])
    all_stages = stages(recipe)[:3]
    whole = execute(recipe, all_stages, tmp_path / "whole")

    calls = []
    step = training.tasks.dense.OrderedTrainer.training_step

    def stopped_step(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 6:  # two of the tower, then the fourth of the phase
            raise KeyboardInterrupt
        return step(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(training.tasks.dense.OrderedTrainer, "training_step", stopped_step)
        with pytest.raises(KeyboardInterrupt):
            execute(recipe, all_stages, tmp_path / "stopped")
    stopped = execute(recipe, all_stages, tmp_path / "stopped")

    weights = [load_file(run.directory / "phases" / "one" / "model" / "model.safetensors") for run in (whole, stopped)]
    start = load_file(whole.directory / "tower" / "model" / "model.safetensors")
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert any(not torch.equal(start[name], value) for name, value in weights[0].items())


@pytest.mark.slow
def test_an_older_model_is_replaced_whole(tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").touch()  # else it is no model, and refused
    (tmp_path / "teacher" / "old.bin").touch()
    execute(tiny_dense_recipe(tmp_path / "teacher"), stages(tiny_dense_recipe(tmp_path / "teacher")), tmp_path / "run")
    assert not (tmp_path / "teacher" / "old.bin").exists()
    assert (tmp_path / "teacher" / "model.safetensors").exists()


def test_a_split_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="split 'exam' is not one of teacher.world \\(train, test\\)"):
        tiny_dense_recipe(tmp_path, evaluation_split="exam")


def test_phases_have_names_of_their_own(tmp_path):
    phase = {
        "name": "one",
        "split": "train",
        "steps": 1,
        "warmup_steps": 0,
        "micro_batch_size": 1,
        "learning_rate": 1e-3,
        "tower_learning_rate": 1e-3,
        "word_learning_rate": 1e-3,
        "turns": "independent",
    }
    with pytest.raises(ValidationError, match="names must differ, got one, one"):
        tiny_dense_recipe(tmp_path, phases=[phase, phase])
    with pytest.raises(ValidationError, match="phases: tower is another stage of the run; choose another name"):
        tiny_dense_recipe(tmp_path, phases=[{**phase, "name": "tower"}])
