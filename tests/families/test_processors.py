"""The processors that checkpoints carry take empty lists, which evaluators hand over, and pad on the left."""

import json

import pytest
import torch
from PIL import Image
from transformers import ProcessorMixin
from transformers.utils import is_torchvision_available

from checkpoints.export import write_model, write_processor
from checkpoints.families import sparse_class
from checkpoints.processor import load_processor
from modeling.sparse_processor import SparseProcessorMixin
from modeling.user_error import UserError
from tests.families.family import TinyFamily
from tests.families.qwen2_vl import QWEN2_VL
from tests.families.test_families import families

NOTHING = {"videos": [], "audios": []}
"""What lmms-eval's generic model hands over beside pictures and text."""


def carried(family: TinyFamily, folder) -> ProcessorMixin:
    """The family's processor as an exported checkpoint has it."""
    cls = sparse_class(family.config()).processor_class
    write_processor(family.processor(), cls, folder)
    return cls.from_pretrained(folder)


def prompts(processor: ProcessorMixin) -> dict:
    """Two prompts of different lengths, a picture each."""
    pictures = [Image.radial_gradient("L").convert("RGB").resize(size) for size in ((40, 40), (60, 30))]
    return {
        "text": [f"{processor.image_token} what is this ?", f"{processor.image_token} what colour is the circle ?"],
        "images": pictures,
        "padding": True,
        "return_tensors": "pt",
    }


@families
def test_empty_lists_are_nothing(family: TinyFamily, tmp_path):
    stock, own = family.processor(), carried(family, tmp_path)
    expected = stock(**prompts(stock), padding_side="left")
    found = own(**prompts(own), **NOTHING)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    text = {"text": ["what is this ?"], "return_tensors": "pt"}
    assert torch.equal(own(**text, images=[], audio=(), **NOTHING)["input_ids"], stock(**text)["input_ids"])


@families
def test_the_stock_processor_fails_at_them(family: TinyFamily):
    """Negative control."""
    stock = family.processor()
    with pytest.raises((ValueError, IndexError, TypeError), match="audios|out of range|not callable"):
        stock(**prompts(stock), **NOTHING)


def test_only_empty_lists_are_kept_from_the_stock_processor():
    class Stock(ProcessorMixin):
        def __call__(self, **inputs):
            return inputs

    class Own(SparseProcessorMixin, Stock):
        pass

    given = {"images": ["a"], "text": [], "videos": torch.zeros(0), "audio": None, "audios": [0.0], "padding": ()}
    assert Own.__new__(Own)(**given) == given
    assert Own.__new__(Own)(["a"], "text", [], audio=(), audios=[]) == {"images": ["a"], "text": "text"}


@families
def test_what_is_loaded_is_saved_whole(family: TinyFamily, tmp_path):
    """Also the settings for videos, where they are not used."""
    first, second = tmp_path / "first", tmp_path / "second"
    carried(family, first).save_pretrained(second)
    before, after = (json.loads((folder / "processor_config.json").read_text()) for folder in (first, second))
    for changed in ("processor_class", "auto_map"):
        before.pop(changed, None), after.pop(changed, None)
    assert before == after and before["image_processor"]


@pytest.mark.skipif(is_torchvision_available(), reason="with torchvision, videos are processed")
def test_videos_without_torchvision_are_refused(tmp_path):
    own = carried(QWEN2_VL, tmp_path)
    with pytest.raises(UserError, match="torchvision"):
        own(text=[f"{own.video_token} what is this ?"], videos=[torch.zeros(2, 3, 28, 28)])


@families
def test_nobody_is_asked_at_a_terminal(family: TinyFamily, tmp_path, monkeypatch):
    """transformers would ask whether the checkpoint's code may run, and wait."""
    asked = []
    monkeypatch.setattr("builtins.input", lambda *prompt: asked.append(prompt) or "n")
    model = family.sparse()
    write_model(model, tmp_path)
    write_processor(family.processor(), model.processor_class, tmp_path)
    load_processor(tmp_path)
    assert asked == []
