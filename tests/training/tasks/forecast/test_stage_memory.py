"""What a forecast says a stage holds, against the bytes that its tensors really hold."""

import pytest
import torch
from transformers import DynamicCache

from tests.live_bytes import LiveBytes
from tests.training.tasks.forecast.big_enough import IMAGE, LENGTH, batch, model, recipe, sizes
from training.distillation import losses
from training.distillation.lora import add_lora
from training.distillation.outputs import StudentOutputs, TeacherOutputs
from training.measure.answer_kl import OwnAnswers
from training.measure.clock.benchmark import stock_twin
from training.recipe.file import RECIPES, load_recipe
from training.tasks.dry_run import stages_of
from training.tasks.forecast import training_memory
from training.tasks.forecast.stage_memory import (
    ESTIMATES,
    cache_bytes,
    comparison_bytes,
    forward_bytes,
    kept_answer_bytes,
    memory_by_stage,
)
from training.tasks.forecast.training_memory import Zero, activation_bytes, logits_bytes, state_bytes

WITHOUT_A_MODEL = {"data", "cost", "report"}


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    monkeypatch.chdir(RECIPES.parent)


def tensor_bytes(tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def test_every_stage_of_every_recipe_has_an_estimate():
    for path in sorted(RECIPES.glob("*.yaml")):
        shipped = load_recipe(path.name)
        if shipped.task not in ("dense", "instruct"):
            assert {stage.name for stage in stages_of(shipped)} <= ESTIMATES.keys() | WITHOUT_A_MODEL


def test_weights():
    dense = model()
    assert sizes(recipe("lora=null"), dense).weights == tensor_bytes(dense.parameters())
    adapted = add_lora(model(), recipe().lora)
    assert sizes(recipe(), adapted).weights == tensor_bytes(dense.parameters())


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_what_an_answer_kl_keeps_and_what_it_compares(processes):
    """Four batches of two samples, of which a process has its share."""
    settings = recipe("lora=null", "calibration={num_samples: 8, batch_size: 2}")
    dense = model()
    expected = sizes(settings, dense)
    own = OwnAnswers(dense, [(number, batch(2)) for number in range(4 // processes)])
    with LiveBytes() as live:
        own.prepare()
        kept = kept_answer_bytes(settings, expected, processes)
        assert live.now == pytest.approx(kept, rel=0.1)  # more by what the vision tower leaves
        live.peak = before = live.now
        own.divergences(dense.visual_plan.replace(0, ffn=1))
        working = comparison_bytes(settings, expected) + forward_bytes(expected, 2)
        assert live.peak - before == pytest.approx(working, rel=0.3)


def test_keys_and_values_of_the_dense_model():
    settings = recipe("lora=null")
    dense = model()
    cache = DynamicCache()
    with torch.no_grad():
        inputs = {name: value for name, value in batch(2).items() if name != "labels"}
        stock_twin(dense)(**inputs, past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(sizes(settings, dense), 2, LENGTH) == held


def test_an_evaluation_stays_within_its_estimate():
    settings = recipe("lora=null", "evaluation={batch_size: 3, max_new_tokens: 5}")
    dense = model()
    inputs = {name: value for name, value in batch(3).items() if name != "labels"}
    with LiveBytes() as live:
        dense.generate(**inputs, do_sample=False, max_new_tokens=5)
    estimate = memory_by_stage(settings, sizes(settings, dense), 1)["evaluate"].device - tensor_bytes(
        dense.parameters()
    )
    assert live.peak == pytest.approx(estimate, rel=0.1)


def test_the_stock_twin_of_a_benchmark_needs_no_memory():
    sparse = model()
    with LiveBytes() as live:
        dense = stock_twin(sparse)
    assert live.peak < 0.01 * tensor_bytes(sparse.parameters())
    inputs = {name: value for name, value in batch(1).items() if name != "labels"}
    with torch.no_grad():
        text = inputs["input_ids"] != IMAGE  # the dense plan leaves out what nobody reads of the last visual rows
        torch.testing.assert_close(dense(**inputs).logits[text], sparse(**inputs).logits[text])


@pytest.mark.parametrize("lora", [True, False])
def test_states_of_one_process_without_deepspeed(lora):
    """Weights, gradients and moments after a step."""
    settings = recipe() if lora else recipe("lora=null")
    student = model()
    student.vision_tower.requires_grad_(False)
    if lora:
        student = add_lora(student, settings.lora)
    expected = sizes(settings, student)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    sum(parameter.sum() for parameter in trained).backward()
    optimizer.step()
    held = tensor_bytes(student.parameters()) + tensor_bytes(parameter.grad for parameter in trained)
    held += tensor_bytes(value for state in optimizer.state.values() for value in state.values())
    estimate = state_bytes(
        expected, Zero.of(settings.training), expected.trained, lora=lora, second_model=False, processes=1
    )
    assert estimate == pytest.approx(held, rel=0.001)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations(checkpointing):
    flag = str(checkpointing).lower()
    settings = recipe("lora=null", "training.micro_batch_size=2", f"training.gradient_checkpointing={flag}")
    student = model().train()
    if checkpointing:
        student.gradient_checkpointing_enable()
    expected = sizes(settings, student)
    inputs = batch(2)
    mask = inputs["labels"] != -100
    with LiveBytes() as live:
        student(**inputs, logits_mask=mask.roll(-1, dims=1), use_cache=False).logits.sum()
        forward = live.peak
    logits = int(mask.sum()) * expected.vocabulary * 4
    estimate = activation_bytes(settings.training, expected) + logits
    assert 0.3 * estimate < forward < 1.5 * estimate


@pytest.mark.parametrize("chunk", [2**12, 2**24])
def test_logits_and_their_losses(chunk, monkeypatch):
    settings = recipe("training.micro_batch_size=2")
    expected = sizes(settings, model())
    monkeypatch.setattr(losses, "CHUNK_VALUES", chunk)
    monkeypatch.setattr(training_memory, "CHUNK_VALUES", chunk)
    tokens, width = 2 * expected.text_tokens, 8
    hidden, head = torch.randn(tokens, width, requires_grad=True), torch.randn(expected.vocabulary, width)
    labels = torch.arange(tokens) % expected.vocabulary
    with LiveBytes() as live:
        student = StudentOutputs(hidden @ head.T, hidden)
        teacher = TeacherOutputs(lambda rows: (hidden[rows] @ head.T).detach(), None)
        losses.token_losses(settings.distillation, labels, student, teacher).total.backward()
    assert 0.8 * logits_bytes(settings.training, expected) < live.peak < 1.2 * logits_bytes(settings.training, expected)


def test_zero_divides_what_it_divides():
    settings = load_recipe("llava_sparse")
    expected = sizes(recipe(), add_lora(model(), recipe().lora))
    device = {
        stage: [
            state_bytes(expected, Zero(stage, True), expected.trained, lora=True, second_model=False, processes=count)
            for count in (1, 4)
        ]
        for stage in (0, 1, 2, 3)
    }
    weights, trained = 2 * (expected.parameters + expected.trained), expected.trained
    for one, _ in device.values():
        assert one == weights + trained * (2 + 12)
    assert [many for _, many in device.values()] == [
        weights + trained * (2 + 12),
        weights + trained * (2 + 12 / 4),
        weights + trained * (2 + 12) / 4,
        weights / 4 + expected.parameters * 2 * 3 / 4 + trained * (2 + 12) / 4,
    ]
    assert Zero.of(settings.training) == Zero(2, True)
