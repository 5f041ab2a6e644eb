"""Runs that go on from a sparse checkpoint."""

import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from checkpoints.build import build_student, load_dense
from checkpoints.export import write_model, write_processor
from checkpoints.load import load_checkpoint
from data.collator import Collator
from modeling.layer_plan import LayerPlan
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from tests.checkpoints.tiny_dense import save_tiny_dense, tiny_dense
from training.distillation.callbacks import read_metrics
from training.distillation.datasets import index_data, mixture
from training.distillation.students import dense_processor, dense_student, load_model, train_student
from training.recipe.file import load_recipe
from training.run import execute
from training.tasks import sparsify
from training.tasks.dry_run import dry_run
from training.tasks.run_folder import load_plan
from training.tasks.sparsify import stages
from training.tasks.stages import read_data
from training.tasks.starting_point import check_starting_point

PLAN = VisualPlan((LayerPlan(heads=(1,)), LayerPlan(ffn=tuple(range(1, 64, 2))), LayerPlan(radius=1)))
CARD = "---\nbase_model: llava-hf/tiny\nlicense: mit\n---\n\n# tiny\n"
KEEP = ["plan={planner: keep}", "compare=[]"]


@pytest.fixture(scope="module")
def sparse(dense_folder, tmp_path_factory):
    """A sparse checkpoint of the dense model, with a card."""
    folder = tmp_path_factory.mktemp("first") / "sparse"
    dense, processor = load_dense(dense_folder, torch.float32)
    student = build_student(dense, PLAN)
    write_model(student, folder)
    write_processor(processor, type(student).processor_class, folder)
    (folder / "README.md").write_text(CARD)
    return folder


def recipe_of(folder, *overrides):
    return load_recipe("debug", [f"model.path={folder}", *KEEP, *overrides])


# ---- the same as from the dense model with these weights ----


@pytest.fixture(scope="module")
def same_weights(sparse, dense_folder, tmp_path_factory):
    """A folder of the stock class, which the checkpoint's tensors were put into by name, and a file of its plan."""
    folder = tmp_path_factory.mktemp("same") / "dense"
    model, processor = tiny_dense(biases=False)
    model.load_state_dict(load_checkpoint(sparse, torch.float32)[0].state_dict())
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    counts = VisualPlan((LayerPlan(heads=1), LayerPlan(ffn=32), LayerPlan(radius=1)))
    counts.save(folder.parent / "plan.json")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder of the indexes of the data, which all recipes here share."""
    return tmp_path_factory.mktemp("data")


def trained(recipe, folder, data):
    """Trains the student of a recipe, and returns its weights and its metrics."""
    model = dense_student(recipe.model)
    plan = recipe.plan.find(SimpleNamespace(config=model.config, latency=None))
    processor = dense_processor(recipe.model)
    index_data(recipe, processor, data)
    train_student(recipe, plan, mixture(recipe, "train", processor, data), Collator(processor), folder)
    (weights,) = (folder / "weights").glob("*.safetensors")
    return load_file(weights), [row for row in read_metrics(folder / "trainer" / "metrics.jsonl") if "loss" in row]


@pytest.mark.parametrize("lora", ["{rank: 4, alpha: 8}", pytest.param("null", marks=pytest.mark.slow)])
def test_training_goes_on_as_from_the_dense_model_with_these_weights(sparse, same_weights, lora, data, tmp_path):
    lora = f"lora={lora}"
    got, rows = trained(recipe_of(sparse, lora), tmp_path / "sparse", data)
    plan = f"plan={{planner: file, path: {same_weights.parent / 'plan.json'}}}"
    expected, expected_rows = trained(recipe_of(same_weights, lora, plan), tmp_path / "dense", data)
    assert got.keys() == expected.keys() and len(rows) == 3
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected_rows]


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["{rank: 4, alpha: 8}", "null"])
def test_a_named_teacher_teaches(sparse, dense_folder, lora, data, tmp_path):
    """The model that the checkpoint was made of teaches as its own weights do. With another projector, one does not."""
    other, _ = load_dense(dense_folder, torch.float32)
    with torch.no_grad():
        for parameter in other.model.multi_modal_projector.parameters():
            parameter.mul_(-1.0)
    other_folder = save_tiny_dense(tmp_path / "other", biases=False)
    other.save_pretrained(other_folder)
    teachers = {"own": [], "same": [f"model.teacher={dense_folder}"], "other": [f"model.teacher={other_folder}"]}
    own, same, another = (
        trained(recipe_of(sparse, f"lora={lora}", *extra), tmp_path / name, data)[1] for name, extra in teachers.items()
    )
    for row, other_row in zip(own, same, strict=True):
        assert other_row["forward_kl"] == pytest.approx(row["forward_kl"], rel=1e-3)
    assert another[0]["forward_kl"] != pytest.approx(own[0]["forward_kl"], rel=1e-2)
    assert another[0]["cross_entropy"] == pytest.approx(own[0]["cross_entropy"], rel=1e-5), "the student is the same"


# ---- what is refused ----


def teacher_of(folder, **changes):
    """A dense model of other sizes or other words. Only its config and its processor are there."""
    model, processor = tiny_dense(biases=False)
    for name, value in changes.items():
        if name == "words":
            processor.tokenizer.add_tokens(value)
        else:
            setattr(model.config.text_config, name, value)
    model.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def file_plan(folder, plan):
    plan.save(folder / "plan.json")
    return f"plan={{planner: file, path: {folder / 'plan.json'}}}"


def layers(**changes):
    """The checkpoint's own plan, but for one layer."""
    own = [LayerPlan(heads=1), LayerPlan(ffn=32), LayerPlan(radius=1)]
    for name, layer in changes.items():
        own[int(name[1:])] = layer
    return VisualPlan(tuple(own))


def more(plan):
    """One more student, with this plan."""
    return f"compare=[{{name: more, {plan.replace('=', ': ', 1)}, distil: false}}]"


@pytest.mark.parametrize(
    "overrides, message",
    [
        (lambda at: [f"model.teacher={teacher_of(at, vocab_size=90)}"], r"text_config.vocab_size: got 90, .* has \d+"),
        (lambda at: [f"model.teacher={teacher_of(at, num_hidden_layers=4)}"], "num_hidden_layers: got 4, .* has 3"),
        (lambda at: [f"model.teacher={teacher_of(at, intermediate_size=60)}"], "intermediate_size: got 60, .* has 64"),
        (lambda at: [f"model.teacher={at / 'absent'}"], "absent: no such model"),
        (lambda at: ["plan={planner: greedy, budget: {visual_flops: 0.2}}"], "got greedy, which may open"),
        (lambda at: ["plan={planner: gates, budget: {visual_flops: 0.2}, steps: 1}"], "got gates, which may open"),
        (lambda at: ["plan={planner: vtw, budget: {visual_flops: 0.6}}"], "layer 0: heads: opens"),
        (lambda at: [file_plan(at, layers(l0=LayerPlan(heads=2)))], "layer 0: heads: opens"),
        (lambda at: [file_plan(at, layers(l0=LayerPlan(heads=(1,))))], "layer 0: heads: opens"),
        (lambda at: [file_plan(at, layers(l1=LayerPlan(ffn=(31, 32))))], "layer 1: ffn: opens"),
        (lambda at: [more(file_plan(at, VisualPlan.dense(3)))], "student more: plan: layer 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_checkpoint_is_refused(sparse, tmp_path, overrides, message):
    recipe = recipe_of(sparse, *overrides(tmp_path))
    with pytest.raises(UserError, match=message):
        check_starting_point(recipe)


def test_words_of_another_teacher_are_refused(sparse, tmp_path, monkeypatch):
    monkeypatch.setattr("training.tasks.starting_point._sizes", lambda config: {})
    recipe = recipe_of(sparse, f"model.teacher={teacher_of(tmp_path, words=['zebra'])}")
    with pytest.raises(UserError, match="1 tokens have another number than in .*sparse, first 'zebra'"):
        check_starting_point(recipe)


def test_a_teacher_is_dense_and_of_a_sparse_checkpoint(sparse, dense_folder):
    with pytest.raises(UserError, match="model.teacher: .*sparse is a sparse checkpoint, allowed: a dense model"):
        check_starting_point(recipe_of(sparse, f"model.teacher={sparse}"))
    with pytest.raises(UserError, match="model.teacher: got .*, allowed: null, as .* is dense and its own teacher"):
        check_starting_point(load_recipe("debug", [f"model.path={dense_folder}", f"model.teacher={dense_folder}"]))
    with pytest.raises(UserError, match="keep_answers goes without model.teacher"):
        recipe_of(sparse, f"model.teacher={dense_folder}", "distillation.keep_answers=true")
    with pytest.raises(UserError, match="got keep, allowed: where model.path is a sparse checkpoint"):
        dry_run(recipe_of(dense_folder))


def test_planners_are_compared_on_a_dense_model(sparse):
    for name in ("tiny_frontier", "tiny_planners"):
        with pytest.raises(UserError, match="is a sparse checkpoint, allowed with task .*: a dense model"):
            check_starting_point(load_recipe(name, [f"model.path={sparse}"]))


@pytest.mark.parametrize(
    "plan",
    [
        layers(),
        layers(l0=LayerPlan(heads=1, attend=False), l1=LayerPlan(ffn=(31, 3))),
        layers(l2=LayerPlan(tokens=0.0)),
        layers(l2=LayerPlan()),  # its radius is dead work, as no later layer reads
    ],
)
def test_a_plan_inside_the_checkpoints_is_taken(sparse, tmp_path, plan):
    check_starting_point(recipe_of(sparse, file_plan(tmp_path, plan)))


# ---- the whole way ----


def test_the_first_stage_says_what_the_dense_model_is(sparse, dense_folder, tmp_path, capsys):
    for extra, words in (
        ([], "sparse, its weights under the full plan"),
        ([f"model.teacher={dense_folder}"], "dense"),
    ):
        recipe = recipe_of(sparse, *extra, f"name=said{len(extra)}")
        (tmp_path / recipe.name).mkdir()
        result = read_data(SimpleNamespace(recipe=recipe, directory=tmp_path / recipe.name))
        assert result["goes_on"] == {"from": "sparse", "dense": words}
        assert f"goes on from sparse; its dense model: {words}" in capsys.readouterr().out


@pytest.mark.slow
def test_from_a_checkpoint_to_a_checkpoint(sparse, dense_folder, tmp_path, monkeypatch):
    tighter = "plan={planner: stack, of: [{planner: keep}, {planner: greedy, budget: {visual_flops: 0.4}}]}"
    compare = "compare=[{name: first, plan: {planner: keep}, distil: false}]"
    recipe = recipe_of(sparse, tighter, compare, f"model.teacher={dense_folder}", "name=second")
    dry_run(recipe)
    compared = []
    monkeypatch.setattr(sparsify, "load_model", lambda settings: compared.append(settings.path) or load_model(settings))
    run = execute(recipe, stages(recipe), tmp_path / "run")
    assert compared == [str(dense_folder)], "the teacher is what the student is compared with"
    first, second = load_plan(run, "first"), load_plan(run, "student")
    assert run.result("plan")["student"]["visual_flops"] <= 0.4 < run.result("plan")["first"]["visual_flops"]
    for layer, before in zip(second.live(2, 64), first.live(2, 64), strict=True):
        assert layer.tokens <= before.tokens and layer.num_heads <= before.num_heads and layer.num_ffn <= before.num_ffn
    model, _ = load_checkpoint(run.directory / "checkpoint", torch.float32)
    assert model.visual_plan.is_integer and len(model.visual_plan) == 3
    card = ModelCard.load(run.directory / "checkpoint" / "README.md")
    assert (card.data.base_model, card.data.license) == ("llava-hf/tiny", "mit")
    assert "| goes on from | `sparse` |" in card.text and "| dense model | dense |" in card.text
    assert "The dense model that it is compared with is dense." in (run.directory / "report.html").read_text()
    shared = yaml.safe_load((run.directory / "checkpoint" / "recipe.yaml").read_text())
    assert (shared["model"]["path"], shared["model"]["teacher"]) == ("sparse", "dense")

    third = recipe_of(run.directory / "checkpoint", "name=third", "lora=null")
    again = execute(third, stages(third), tmp_path / "third")
    kept = json.loads((again.directory / "checkpoint" / "config.json").read_text())["visual_plan"]
    assert kept == model.visual_plan.to_dict(), "the same plan, in the same order"
    assert ModelCard.load(again.directory / "checkpoint" / "README.md").data.base_model == "llava-hf/tiny"
