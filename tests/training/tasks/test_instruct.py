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
from tests.families.qwen2_vl import QWEN2_VL
from tests.training.tasks.tiny_instruct_recipe import OPTIMIZER, save_instruct_inputs, tiny_instruct_recipe
from training.distillation.sample_order import OrderedTrainer
from training.recipe.dense import OptimizerSettings
from training.recipe.instruct import InstructRecipe
from training.run import Stage, execute
from training.tasks.dense import training_arguments
from training.tasks.dry_run import dry_run
from training.tasks.instruct import stages


@pytest.fixture
def folder(tmp_path):
    save_instruct_inputs(tmp_path)
    return tmp_path


def changed(recipe, **sections) -> InstructRecipe:
    """A recipe with other values of some keys in its sections."""
    content = recipe.model_dump(mode="json")
    for name, value in sections.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    return InstructRecipe.model_validate(content)


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
def test_a_training_that_was_stopped_ends_as_one_that_was_not(folder, monkeypatch):
    """In the middle of each of the two, with dropout, bit for bit."""
    steps = {"steps": 4, "save_steps": 1}
    recipe = changed(tiny_instruct_recipe(folder), naming=steps, tuning=steps, lora={"dropout": 0.5})
    four = stages(recipe)[:4]
    whole = execute(recipe, four, folder / "whole")
    step, calls = OrderedTrainer.training_step, []

    def stopped_step(*arguments, **keywords):
        calls.append(1)
        if len(calls) in (3, 6):  # the third of naming; then two are left, and the second of tuning
            raise KeyboardInterrupt
        return step(*arguments, **keywords)

    monkeypatch.setattr(OrderedTrainer, "training_step", stopped_step)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            execute(recipe, four, folder / "stopped")
    stopped = execute(recipe, four, folder / "stopped")
    assert len(calls) == 4 + 4 + 2
    for name in ("naming/model/projector.safetensors", "tuning/model/adapter_model.safetensors"):
        assert (stopped.directory / name).read_bytes() == (whole.directory / name).read_bytes(), name
    other = execute(changed(recipe, seed=1), four, folder / "other")
    assert (other.directory / name).read_bytes() != (whole.directory / name).read_bytes(), "another order is noticed"


@pytest.mark.slow
def test_a_damaged_file_of_the_run_is_named_and_made_again(folder):
    """Each stage finds what an earlier one wrote, or says in one line which file to delete."""
    recipe = tiny_instruct_recipe(folder)
    run = execute(recipe, stages(recipe), folder / "run")
    index = run.result("data")["index"]
    kept = {
        f"data/{index}": ("data", "data: is damaged"),
        "features/00000000.npy": ("features", "00000000.npy: is damaged"),
        "naming/model/projector.safetensors": ("naming", "projector.safetensors: is damaged"),
        "tuning/model/adapter_model.safetensors": ("tuning", "adapter_model.safetensors: is damaged"),
    }
    names = [stage.name for stage in stages(recipe)]
    for file, (made_by, message) in kept.items():
        path = run.directory / file
        content = path.read_bytes()
        later = names[names.index(made_by) + 1 :]
        for damaged in (content[: len(content) // 2], b"nothing of it", None):
            for name in later:
                run.result_path(name).unlink(missing_ok=True)
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            with pytest.raises(UserError, match=message) as refused:
                execute(recipe, stages(recipe), run.directory)
            assert "\n" not in str(refused.value) and "delete" in str(refused.value)
            path.write_bytes(content)
        execute(recipe, stages(recipe), run.directory)


def test_what_would_be_lost_or_cannot_be_is_refused_with_the_recipe(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "link").symlink_to(folder / "base")
    recipe = tiny_instruct_recipe(folder)
    apart = "output: got .*, allowed: a folder apart from"
    wrong = {
        "runs/tiny": apart,
        "runs": apart,
        "runs/tiny/naming/model": apart,
        str(folder / "runs/other/../tiny/x"): apart,
        "base": apart,
        "base/taught": apart,
        "link": "'link' is a link",
        "train.parquet": "is there and is no model",
        "": "allowed: a folder that has a name",
    }
    for output, message in wrong.items():
        with pytest.raises(ValidationError, match=message):
            changed(recipe, model={"output": output})
    changed(recipe, model={"output": "runs/tiny2"})
    for section in ("naming", "tuning"):
        with pytest.raises(ValidationError, match="warmup_steps: got 2, allowed: fewer than the 2 steps"):
            changed(recipe, **{section: {"warmup_steps": 2}})
        changed(recipe, **{section: {"warmup_steps": 1}})


def test_a_folder_that_cannot_be_written_is_found_first(folder):
    recipe = tiny_instruct_recipe(folder, output=str(folder / "train.parquet" / "taught"))
    with pytest.raises(OSError, match="train.parquet"):
        execute(recipe, stages(recipe)[:1], folder / "run")


@pytest.mark.slow
def test_what_has_changed_between_two_starts_is_named(folder):
    recipe = tiny_instruct_recipe(folder)
    execute(recipe, stages(recipe)[:1], folder / "run")
    with pytest.raises(UserError, match="data.things: got 'boxes', before 'things'"):
        execute(changed(recipe, data={"things": "boxes"}), stages(recipe), folder / "run")
    (folder / "train.parquet").write_bytes((folder / "test.parquet").read_bytes())
    with pytest.raises(UserError, match="data.train.path: .*train.parquet has another content"):
        execute(recipe, stages(recipe), folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize("section", ["naming", "tuning"])
def test_weights_that_are_not_finite_are_not_kept(folder, section):
    recipe = changed(tiny_instruct_recipe(folder), **{section: {"learning_rate": 1e30}})
    with pytest.raises(UserError, match=f"{section}: the training has diverged"):
        execute(recipe, stages(recipe), folder / "run")


@pytest.mark.slow
def test_a_base_of_another_form_is_refused(folder):
    """Its tower gives a feature for the picture as a whole, too."""
    config = json.loads((folder / "base" / "config.json").read_text())
    (folder / "base" / "config.json").write_text(json.dumps(config | {"vision_feature_select_strategy": "full"}))
    recipe = tiny_instruct_recipe(folder)
    with pytest.raises(UserError, match="the vision tower gives 10 features of a picture, allowed: 9"):
        execute(recipe, stages(recipe)[:1], folder / "run")
    (folder / "base" / "config.json").write_text(json.dumps(QWEN2_VL.config().to_dict()))
    with pytest.raises(UserError, match="got a 'qwen2_vl' model, allowed: 'llava'"):
        dry_run(recipe)


@pytest.mark.slow
def test_longer_rows_than_allowed_leave_nothing(folder):
    recipe = tiny_instruct_recipe(folder, max_length=16)
    with pytest.raises(UserError, match="no row can be trained on; 0 of 6 are bad; 6 have more than 16 tokens"):
        execute(recipe, stages(recipe)[:1], folder / "run")


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
