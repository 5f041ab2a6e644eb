"""The two-stream decoder against a slow masked reference, and its invariants."""

import pytest
import torch
from torch import nn

from modeling.layer_plan import LayerPlan
from modeling.visual_plan import VisualPlan
from tests.modeling.masked_reference import reference_logits
from tests.modeling.random_plans import random_plan
from tests.tiny_student import IMAGE_TOKEN, single_samples, tiny_batch, tiny_student

LAYERS, UNITS, NEURONS = 3, 2, 24
IMAGES = (0, 1, 2)


def forward_inputs(batch: dict) -> dict:
    return {name: value for name, value in batch.items() if name != "labels"}


def text_rows(batch: dict) -> torch.Tensor:
    return (batch["input_ids"] != IMAGE_TOKEN) & batch["attention_mask"].bool()


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).detach().abs().max() / expected.detach().abs().max())


def reference_batch(model, plan, batch, grid_side=3, train=False) -> torch.Tensor:
    """Logits of every text row of the batch, in row-major order."""
    rows = []
    for single in single_samples(batch, grid_side):
        supervised = single["labels"][0] != -100 if train else None
        rows.append(reference_logits(model, plan, single, supervised)[single["input_ids"][0] != IMAGE_TOKEN])
    return torch.cat(rows)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("seed", range(12))
def test_random_plans_equal_the_masked_reference(seed, padding_side):
    model = tiny_student(LAYERS)
    plan = random_plan(seed, LAYERS, UNITS, NEURONS)
    batch = tiny_batch(IMAGES, seed=seed, padding_side=padding_side)
    with torch.no_grad(), model.use_plan(plan):
        got = model(**forward_inputs(batch)).logits[text_rows(batch)]
    assert relative_error(got, reference_batch(model, plan, batch)) < 1e-5


@pytest.mark.parametrize(
    "entry",
    [
        {"radius": 1},
        {"radius": 1, "bidirectional": True},
        {"radius": 2, "read": False},
        {"radius": 1, "heads": [1]},
    ],
)
def test_tiles_equal_the_masked_reference(entry):
    """A grid large enough that neighbour attention runs over tiles; the second layer reads what the first wrote."""
    model = tiny_student(2, grid_side=8)
    plan = VisualPlan.from_dict({"layers": [entry, {}]})
    batch = tiny_batch((1, 2), grid_side=8)
    with torch.no_grad(), model.use_plan(plan):
        got = model(**forward_inputs(batch)).logits[text_rows(batch)]
    expected = reference_batch(model, plan, batch, grid_side=8)
    assert relative_error(got, expected) < 1e-5
    dense = reference_batch(model, VisualPlan.dense(2), batch, grid_side=8)
    assert relative_error(dense, expected) > 1e-3  # the radius matters at all


def test_the_reference_notices_another_plan():
    model, batch = tiny_student(LAYERS), tiny_batch(IMAGES)
    dense = reference_batch(model, VisualPlan.dense(LAYERS), batch)
    for changes in ({"attend": False}, {"read": False}, {"heads": 1}, {"ffn": 3}, {"radius": 0}):
        other = reference_batch(model, VisualPlan.dense(LAYERS).replace(1, **changes), batch)
        assert relative_error(other, dense) > 1e-4, changes


@pytest.mark.parametrize("seed", range(6))
def test_gradients_equal_the_masked_reference(seed):
    """In training mode too, where tokens are ranked from the rows before the answers."""
    model = tiny_student(LAYERS).train()
    plan = random_plan(seed, LAYERS, UNITS, NEURONS)
    batch = tiny_batch(IMAGES, seed=seed)
    with model.use_plan(plan):
        logits = model(**batch).logits[text_rows(batch)]
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
    (logits * weights).sum().backward()
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    (reference_batch(model, plan, batch, train=True) * weights).sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert got.keys() <= expected.keys()
    for name, gradient in expected.items():
        scale = max(float(gradient.abs().max()), 0.1)  # key biases have no gradient but rounding
        mine = got.get(name, torch.zeros_like(gradient))  # dead work: no gradient at all, where masks give zeros
        assert float((mine - gradient).abs().max()) < 1e-4 * scale, name


def test_withdrawn_equals_unread():
    model, batch = tiny_student(LAYERS), tiny_batch(IMAGES)
    withdrawn = VisualPlan.dense(LAYERS).replace(1, tokens=0)
    unread = VisualPlan.dense(LAYERS).replace(1, read=False).replace(2, read=False)
    with torch.no_grad():
        with model.use_plan(withdrawn):
            first = model(**forward_inputs(batch)).logits[text_rows(batch)]
        with model.use_plan(unread):
            second = model(**forward_inputs(batch)).logits[text_rows(batch)]
    assert torch.equal(first, second)


def rows_through(model, inputs) -> dict[str, int]:
    """How many rows each projection of the decoder is applied to in one forward."""
    counts: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():
        if "language_model" in name and isinstance(module, nn.Linear):

            def count(_, args, output, name=name):
                counts[name] = counts.get(name, 0) + output.shape[0] * output.shape[1]

            handles.append(module.register_forward_hook(count))
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return counts


def test_dead_work_is_not_computed():
    model, batch = tiny_student(LAYERS), tiny_batch((1,))
    text = int(text_rows(batch).sum())
    dense = rows_through(model, forward_inputs(batch))
    last = "model.language_model.layers.2."
    assert dense[last + "self_attn.k_proj"] == text + 9
    assert dense[last + "self_attn.q_proj"] == dense[last + "mlp.up_proj"] == text
    with model.use_plan(VisualPlan.dense(LAYERS).replace(1, tokens=0)):
        cut = rows_through(model, forward_inputs(batch))
    assert cut[last + "self_attn.k_proj"] == text
    assert cut["model.language_model.layers.0.mlp.up_proj"] == text


def test_text_alone_never_pays():
    model, batch = tiny_student(LAYERS), tiny_batch((0, 0))
    plan = VisualPlan(layers=(LayerPlan(heads=1),) * LAYERS)
    with model.use_plan(plan):
        assert rows_through(model, forward_inputs(batch)) == rows_through(tiny_student(LAYERS), forward_inputs(batch))


def test_batch_mates_and_their_order_change_nothing():
    model = tiny_student(LAYERS)
    batch = tiny_batch((1, 0, 1))
    swapped = {name: value.flip(0) for name, value in batch.items()}
    with torch.no_grad(), model.use_plan(random_plan(3, LAYERS, UNITS, NEURONS)):
        together = model(**forward_inputs(batch)).logits
        turned = model(**forward_inputs(swapped)).logits.flip(0)
        alone = torch.cat(
            [
                model(**forward_inputs(single)).logits[0][single["input_ids"][0] != IMAGE_TOKEN]
                for single in single_samples(batch)
            ]
        )
    rows = text_rows(batch)
    assert relative_error(together[rows], turned[rows]) < 1e-5
    assert relative_error(together[rows], alone) < 1e-5


def test_a_later_row_changes_no_earlier_one():
    model, batch = tiny_student(LAYERS), tiny_batch((1,))
    inputs = forward_inputs(batch)
    with torch.no_grad(), model.use_plan(VisualPlan.dense(LAYERS).replace(0, heads=1, radius=1)):
        before = model(**inputs).logits
        inputs["input_ids"] = inputs["input_ids"].clone()
        inputs["input_ids"][0, -2] = 5 if inputs["input_ids"][0, -2] != 5 else 6
        after = model(**inputs).logits
    assert torch.equal(before[:, :-2], after[:, :-2]) and not torch.equal(before[:, -2:], after[:, -2:])


def test_gradient_checkpointing_changes_no_gradient():
    model, batch = tiny_student(LAYERS).train(), tiny_batch(IMAGES)
    model.model.language_model.set_visual_plan(random_plan(5, LAYERS, UNITS, NEURONS))
    gradients = []
    for use_reentrant in (None, False, True):
        model.zero_grad()
        if use_reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model(**batch).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient)


def test_a_plan_that_does_not_fit_is_refused():
    model = tiny_student(LAYERS)
    with pytest.raises(ValueError, match="got 2 layers, the model has 3"):
        model.set_visual_plan(VisualPlan.dense(2))
    with pytest.raises(ValueError, match="heads: got 9, the model has 2"):
        model.set_visual_plan(VisualPlan.dense(LAYERS).replace(0, heads=9))
    assert model.visual_plan == VisualPlan.dense(LAYERS)


@pytest.mark.parametrize("seed", range(3))
def test_eager_attention_is_the_fused_one_written_out(seed, monkeypatch):
    """Logits and gradients, over both paddings, blind and near-sighted layers, grouped heads."""
    found, fused_attention = [], torch.nn.functional.scaled_dot_product_attention
    for implementation in ("sdpa", "eager"):
        model = tiny_student(num_layers=4)
        model.set_attn_implementation(implementation)
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fused_attention if not found else None)
        model.set_visual_plan(random_plan(seed, 4, 2, 24))
        outputs = []
        for side in ("left", "right"):
            batch = tiny_batch((0, 1, 2), seed=seed, padding_side=side)
            labels = batch.pop("labels")
            outputs.append(model(**batch, logits_mask=predicted(labels), use_cache=False).logits)
        torch.cat(outputs).pow(2).sum().backward()
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        found.append((torch.cat(outputs).detach(), gradients))
    (fused, fused_gradients), (eager, eager_gradients) = found
    torch.testing.assert_close(eager, fused, rtol=1e-5, atol=1e-5)
    assert eager_gradients.keys() == fused_gradients.keys()
    for name, value in fused_gradients.items():
        if "vision_tower" in name:  # the bias of its keys has no gradient but rounding
            continue
        torch.testing.assert_close(
            eager_gradients[name], value, rtol=1e-4, atol=1e-4 * float(value.abs().max()), msg=name
        )


def predicted(labels):
    """Rows before answer tokens: labels [B, S] -> [B, S] bool."""
    return torch.cat([labels[:, 1:] != -100, torch.zeros_like(labels[:, :1], dtype=torch.bool)], dim=1)
