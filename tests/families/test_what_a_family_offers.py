"""What a family must offer is written in modeling/family.py, and a family that lacks a member is told which."""

import re
import sys

import pytest

from checkpoints import families
from checkpoints.families import check_family, class_members, sparse_classes
from modeling.family import Family, FamilyModel

MODEL_MEMBERS = dict.fromkeys(class_members(FamilyModel))
MEMBERS = dict.fromkeys(class_members(Family))


def family_without(name: str | None = None, model_name: str | None = None) -> type:
    """A family's class with all members but one, and its model's class with all members but one."""
    model = type("NewModel", (), {key: value for key, value in MODEL_MEMBERS.items() if key != model_name})
    members = {**MEMBERS, "model_class": model}
    return type("NewForConditionalGeneration", (), {key: value for key, value in members.items() if key != name})


def test_the_members_are_those_that_the_repository_uses():
    plan_members = {"visual_plan", "set_visual_plan", "use_plan"}
    assert set(MODEL_MEMBERS) == {"class_blocks", "get_image_features", *plan_members}
    assert set(MEMBERS) == {
        "stock_class",
        "processor_class",
        "model_class",
        "text_types",
        "image_grids",
        "vision_macs",
        "random_pictures",
        "visual_rows",
        "visual_tokens",
        "stock_inputs",
        "vision_tower",
        "encode_pictures",
        *plan_members,
    }


def test_a_complete_family_passes():
    check_family(family_without())


@pytest.mark.parametrize("name", MEMBERS)
def test_a_family_that_lacks_a_member_is_told_which(name):
    with pytest.raises(TypeError, match=rf"test_what_a_family_offers: NewForConditionalGeneration\.{name}: missing"):
        check_family(family_without(name))


@pytest.mark.parametrize("name", MODEL_MEMBERS)
def test_a_family_whose_model_lacks_a_member_is_told_which(name):
    with pytest.raises(TypeError, match=rf": NewModel\.{name}: missing"):
        check_family(family_without(model_name=name))


def test_shipped_families_offer_all():
    """`sparse_classes` would have raised."""
    assert set(sparse_classes()) == {"internvl", "llava", "llava_next", "qwen2_vl"}


def test_families_are_checked_when_they_are_found(tmp_path, monkeypatch):
    (tmp_path / "modeling_sparse_new.py").write_text('__all__ = ["NewModel"]\n\n\nclass NewModel:\n    pass\n')
    monkeypatch.setattr(families.modeling, "__path__", [str(tmp_path)])
    with pytest.raises(
        TypeError, match=re.escape("modeling.modeling_sparse_new: NewModel.stock_class, NewModel.processor_")
    ):
        sparse_classes.__wrapped__()
    del sys.modules["modeling.modeling_sparse_new"]
