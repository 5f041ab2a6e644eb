"""What `precision: auto` becomes on a machine, and in which fields of a recipe."""

import pytest
import torch

from training.changes import decided, undecided
from training.recipe.file import load_recipe
from training.run import fast_precision


@pytest.mark.parametrize(
    ("gpu", "cpu", "expected"),
    [
        (None, {"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        (None, {"avx2": True, "avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        (None, {"avx512_bf16": False, "amx_bf16": True}, "bfloat16"),
        (None, {"neon": True, "bf16": True}, "bfloat16"),
        (None, {"neon": True, "bf16": False}, "float32"),
        (True, {"amx_bf16": False}, "bfloat16"),
        (False, {"amx_bf16": True}, "float32"),
    ],
)
def test_what_is_fast(monkeypatch, gpu, cpu, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu, raising=False)
    assert fast_precision() == expected


def test_a_torch_that_does_not_tell(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert fast_precision() == "float32"


def test_every_field_that_is_auto_is_decided_and_no_other():
    recipe = load_recipe("tiny_teacher", ["teacher.phases.1.precision=bfloat16"])
    fields = undecided(recipe)
    assert fields[:3] == ["teacher.tower.precision", "teacher.phases.0.precision", "teacher.phases.2.precision"]
    now = decided(recipe, dict.fromkeys(fields, "float32"))
    phases = [phase.precision for phase in now.teacher.phases]
    assert undecided(now) == [] and now.teacher.tower.precision == "float32"
    assert phases == ["float32", "bfloat16", *["float32"] * (len(phases) - 2)]
    back = now.model_dump() | {"teacher": now.teacher.model_dump() | {
        part: recipe.model_dump()["teacher"][part] for part in ("tower", "phases")
    }}  # fmt: skip
    assert back == recipe.model_dump(), "nothing else has changed"
    assert undecided(load_recipe("debug")) == []
