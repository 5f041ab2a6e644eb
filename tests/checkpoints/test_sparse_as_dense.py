"""The weights of a sparse checkpoint under the full plan are a dense model, that of each family's stock class."""

import json

import pytest
import torch

from checkpoints.build import build_student, dense_config, load_dense, starting_plan
from checkpoints.export import write_model, write_processor
from modeling.layer_plan import LayerPlan
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from tests.families.family import COLLATORS
from tests.families.internvl import INTERNVL
from tests.families.llava import LLAVA
from tests.families.llava_next import LLAVA_NEXT
from tests.families.qwen2_vl import QWEN2_VL

FAMILIES = [INTERNVL[0], LLAVA[0], LLAVA_NEXT[0], QWEN2_VL]
PLAN = VisualPlan((LayerPlan(heads=(1,), ffn=tuple(range(5, 24, 2))), LayerPlan(ffn=(3, 20)), LayerPlan(tokens=0.0)))


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def exported(request, tmp_path):
    """A family, its student under PLAN, and the student's checkpoint."""
    student = request.param.sparse(PLAN)
    write_model(student, tmp_path)
    write_processor(request.param.processor(), type(student).processor_class, tmp_path)
    return request.param, student, tmp_path


def test_the_stock_class_computes_what_the_dense_model_did(exported):
    family, student, folder = exported
    model, _ = load_dense(folder, torch.float32, or_sparse=True)
    dense, batch = family.dense(), COLLATORS["right"](family.samples(0))
    assert type(model) is type(dense) and model.config.text_config.model_type == dense.config.text_config.model_type
    inputs = {name: value for name, value in batch.items() if name != "labels"} | family.stock_inputs(batch)
    with torch.no_grad():
        expected, got = dense(**inputs).logits, model.eval()(**inputs).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    name = "model.language_model.layers.1.mlp.down_proj.weight"  # of every family
    assert not torch.equal(model.state_dict()[name], dense.state_dict()[name]), "its neurons are in another order"

    again = build_student(model, starting_plan(folder))
    assert again.visual_plan == student.visual_plan
    assert student.config.to_dict().keys() - again.config.to_dict().keys() == {"auto_map"}, "an export writes it"
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_dense_model_is_expected_where_no_other_is_allowed(exported):
    _, student, folder = exported
    with pytest.raises(UserError, match=f"got a '{student.config.model_type}' model, supported"):
        load_dense(folder, torch.float32)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"visual_plan": 3}, "visual plan: expected an object, got 3"),
        ({"visual_plan": {"layers": [{}]}}, "got 1 layers, the model has 3"),
        ({"visual_plan": {"layers": [{"heads": 9}, {}, {}]}}, "layer 0: heads: got 9, the model has 2"),
        ({"text_config": 3}, "not a config that transformers accepts|not an object"),
        ({"text_config": {"model_type": ["x"]}}, r"text_config.model_type: got \['x'\], expected a text"),
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path, changes, message):
    fields = LLAVA[0].sparse(PLAN).config.to_dict() | changes
    (tmp_path / "config.json").write_text(json.dumps(fields, default=str))
    with pytest.raises(UserError, match=message):
        starting_plan(tmp_path)


def test_the_plan_of_a_checkpoint_is_that_in_force(tmp_path):
    student = LLAVA[0].sparse(PLAN)
    student.config.save_pretrained(tmp_path)
    assert starting_plan(tmp_path) == student.visual_plan and student.visual_plan.layers[0].ffn == 10
    student.config.visual_plan = None
    student.config.save_pretrained(tmp_path)
    assert starting_plan(tmp_path) == VisualPlan.dense(3)
    LLAVA[0].dense().config.save_pretrained(tmp_path)
    assert starting_plan(tmp_path) is None and not hasattr(dense_config(tmp_path, or_sparse=True), "visual_plan")
