"""`task: instruct` in small: every stage on rows with embedded pictures, a stop in between, and what comes out."""

import json
import stat
from itertools import pairwise

import datasets
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration, get_scheduler

from modeling.user_error import UserError
from tests.training.tasks.tiny_instruct_recipe import OPTIMIZER, save_instruct_inputs, tiny_instruct_recipe
from training.recipe.dense import OptimizerSettings
from training.run import Stage, execute
from training.tasks.dense import training_arguments
from training.tasks.instruct import stages


@pytest.fixture
def folder(tmp_path):
    save_instruct_inputs(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_run_ends_in_an_ordinary_llava_folder_and_survives_a_stop(folder):
    recipe = tiny_instruct_recipe(folder)
    all_stages = stages(recipe)

    def stop(run):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(recipe, [*all_stages[:3], Stage("tuning", "stopped", stop)], folder / "run")
    assert not (folder / "taught").exists()
    run = execute(recipe, all_stages, folder / "run")
    assert run.result("data")["rows"] == run.result("features")["pictures"] == 6
    assert run.result("naming") == run.result("naming") | {"steps": 2, "names": 2}
    assert run.result("tuning")["steps"] == 2
    model = LlavaForConditionalGeneration.from_pretrained(folder / "taught")
    assert model.dtype == torch.bfloat16
    assert type(AutoProcessor.from_pretrained(folder / "taught")).__name__ == "LlavaProcessor"
    before = LlavaForConditionalGeneration.from_pretrained(folder / "base", dtype=torch.bfloat16).state_dict()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("vision_tower" not in name and "embed" not in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed) and any("gate_proj" in name for name in changed)
    adapter = load_file(run.directory / "adapter" / "adapter_model.safetensors")
    assert {value.dtype for value in adapter.values()} == {torch.bfloat16}
    assert len(json.loads((run.directory / "evaluation" / "teacher.json").read_text())["records"]) == 6
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder / "taught").iterdir()} == {0o644}


@pytest.mark.slow
@pytest.mark.parametrize(
    "data, last, message",
    [
        ({"things": "boxes"}, 3, "data.things: .*train.parquet has no column 'boxes', got .*things"),
        ({"max_length": 16}, 1, "no row can be trained on; 0 of 6 are bad; 6 have more than 16 tokens"),
    ],
)
def test_data_that_cannot_be_learned_from_is_refused(folder, data, last, message):
    recipe = tiny_instruct_recipe(folder, **data)
    with pytest.raises(UserError, match=message):
        execute(recipe, stages(recipe)[:last], folder / "run")


def test_rows_that_are_left_out_are_counted(folder, capsys):
    rows = datasets.load_dataset("parquet", data_files=str(folder / "train.parquet"), split="train").to_list()
    rows[2]["image"]["bytes"] = b"no picture"
    datasets.Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    recipe = tiny_instruct_recipe(folder)
    assert execute(recipe, stages(recipe)[:1], folder / "run").result("data")["rows"] == 5
    assert "train: 5 samples; 1 of 6 are bad, the first: image" in capsys.readouterr().out


def test_the_learning_rate_stays_for_half_of_the_steps_and_falls_to_nothing(tmp_path):
    settings = OptimizerSettings(**OPTIMIZER | {"steps": 20, "warmup_steps": 2, "lr_schedule": "cosine_at_last"})
    arguments = training_arguments(settings, tmp_path, seed=0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        arguments.lr_scheduler_type, optimizer, 2, 20, scheduler_specific_kwargs=arguments.lr_scheduler_kwargs
    )
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == 0 and rates[2:11] == [1.0] * 9
    assert all(later < earlier for earlier, later in pairwise(rates[10:])) and 0 < rates[-1] < 0.1
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)


def test_a_folder_that_is_no_model_is_not_replaced(tmp_path):
    (tmp_path / "taught").mkdir()
    with pytest.raises(ValidationError, match="taught' is there and is no model, which alone would be replaced"):
        tiny_instruct_recipe(tmp_path)
