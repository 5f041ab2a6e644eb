"""LoRA on sliced projections: every slice equals the same slice of the merged weight."""

import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from checkpoints.build import permute_for_plan
from modeling.visual_plan import VisualPlan
from tests.tiny_student import tiny_batch, tiny_student
from training.distillation.lora import NarrowLoraLinear, adapters_off, add_lora, permuted_adapters
from training.recipe.lora import LoraSettings

SETTINGS = LoraSettings(rank=3, alpha=6)


@pytest.fixture
def model():
    """A student with adapters that do something."""
    peft_model = add_lora(tiny_student(), SETTINGS)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return peft_model


def test_every_slice_is_that_of_the_merged_weight(model):
    layer = next(module for module in model.modules() if isinstance(module, NarrowLoraLinear))
    base, low, high = layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    merged = base + SETTINGS.alpha / SETTINGS.rank * high @ low
    x = torch.randn(2, 5, merged.shape[1])
    index = torch.tensor([4, 0, 7])
    torch.testing.assert_close(layer(x), x @ merged.T)
    for rows, kept in ((3, slice(3)), (index, index)):
        torch.testing.assert_close(layer(x, rows=rows), x @ merged[kept].T)
        torch.testing.assert_close(layer(x[..., kept], columns=rows), x[..., kept] @ merged[:, kept].T)
    assert (merged - base).abs().max() > 0.1, "the adapter does nothing, so nothing was shown"


def test_adapters_sit_on_the_decoder_alone_and_they_alone_are_trained(model):
    adapted = [name for name, module in model.named_modules() if isinstance(module, NarrowLoraLinear)]
    num_layers = len(model.get_base_model().visual_plan)
    assert len(adapted) == 7 * num_layers and all("language_model" in name for name in adapted)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len(adapted) and all("lora_" in name for name in trained)


def test_merging_keeps_the_logits_and_gives_back_plain_projections(model):
    batch = tiny_batch((1, 0, 2))
    del batch["labels"]
    with torch.no_grad():
        before = model(**batch).logits
        merged = model.merge_and_unload()
        after = merged(**batch).logits
    assert float((after - before).abs().max() / before.abs().max()) < 1e-5
    kinds = {
        type(module) for name, module in merged.named_modules() if name.endswith("_proj") and "language_model" in name
    }
    assert kinds == {nn.Linear}


def test_off_is_the_base_model_and_leaves_requires_grad_alone(model):
    batch = tiny_batch((1, 2))
    del batch["labels"]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with torch.no_grad():
        with adapters_off(model):
            assert [parameter.requires_grad for parameter in model.parameters()] == flags
            off = model(**batch).logits
        torch.testing.assert_close(off, tiny_student()(**batch).logits, rtol=0, atol=0)
        assert (model(**batch).logits - off).abs().max() > 1e-2


@pytest.mark.parametrize("num_kv_heads", [2, 4])
def test_adapters_follow_their_units_and_neurons(num_kv_heads):
    """Adapters of the dense model under a plan of lists, and the same permuted, on the permuted student."""
    plan = VisualPlan.dense(3).replace(0, heads=(1,), ffn=(20, 3, 11)).replace(1, heads=(1, 0), ffn=tuple(range(5, 23)))
    dense = add_lora(tiny_student(num_kv_heads=num_kv_heads), SETTINGS)
    generator = torch.Generator().manual_seed(1)
    adapters = {
        name: torch.randn(value.shape, generator=generator) * 0.2
        for name, value in get_peft_model_state_dict(dense).items()
    }
    set_peft_model_state_dict(dense, adapters)
    batch = {name: value for name, value in tiny_batch((1, 2)).items() if name != "labels"}
    with torch.no_grad(), dense.get_base_model().use_plan(plan):
        expected = dense(**batch).logits

    base = tiny_student(num_kv_heads=num_kv_heads)
    base.set_visual_plan(permute_for_plan(base, plan))
    student = add_lora(base, SETTINGS)
    for own, is_right in ((permuted_adapters(adapters, base.model.language_model, plan), True), (adapters, False)):
        assert not set_peft_model_state_dict(student, own).unexpected_keys
        with torch.no_grad():
            logits = student(**batch).logits
        assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-4) == is_right


def test_weights_of_another_dtype_leave_the_states_in_that_of_the_base():
    student = add_lora(tiny_student().bfloat16(), SETTINGS)  # peft makes adapters of half precision float32
    layer = next(module for module in student.modules() if isinstance(module, NarrowLoraLinear))
    assert layer.lora_A["default"].weight.dtype == torch.float32
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    batch = tiny_batch((1, 0))
    loss = student(**{**batch, "pixel_values": batch["pixel_values"].bfloat16()}).loss
    loss.backward()  # no autocast is on
    assert layer(torch.randn(2, layer.in_features, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.lora_A["default"].weight.grad.abs().max() > 0
