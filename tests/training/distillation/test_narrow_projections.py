"""A student in training computes what its plan asks for, whatever waits for its modules to be called."""

import torch
from torch import nn

from modeling.visual_plan import VisualPlan
from tests.tiny_student import tiny_batch, tiny_student
from training.distillation.narrow_projections import NarrowLinear, decoder_projections, put_narrow_projections

PLAN = VisualPlan.dense(3).replace(0, heads=1, ffn=5)


def student():
    model = tiny_student()
    model.set_visual_plan(PLAN)
    return model


def widths(model: nn.Module) -> set[int]:
    """Widths of what the first layer's `up_proj` gives, while a hook waits for its calls, as ZeRO-3's do."""
    found = []
    up = model.model.language_model.layers[0].mlp.up_proj
    handle = up.register_forward_hook(lambda module, arguments, output: found.append(output.shape[-1]))
    model(**tiny_batch((1,)))
    handle.remove()
    return set(found)


def test_slices_are_taken_in_the_forward_of_the_projection(tmp_path):
    plain, narrow = student(), student()
    put_narrow_projections(narrow)
    names = decoder_projections(narrow)
    assert len(names) == 7 * 3 and {type(narrow.get_submodule(name)) for name in names} == {NarrowLinear}
    assert {name: value.shape for name, value in narrow.state_dict().items()} == {
        name: value.shape for name, value in plain.state_dict().items()
    }
    batch = tiny_batch((1, 0, 2))
    with torch.no_grad():
        assert torch.equal(narrow(**batch).logits, plain(**batch).logits)
        assert widths(narrow) == {24, 5}
        assert widths(plain) == {24}

    narrow.save_pretrained(tmp_path)
    loaded = type(narrow).from_pretrained(tmp_path)
    assert {type(loaded.get_submodule(name)) for name in names} == {nn.Linear}
