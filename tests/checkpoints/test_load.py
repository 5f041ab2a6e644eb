"""Loading a checkpoint of either kind, and refusing half of one."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.load import load_checkpoint
from modeling.modeling_sparse_llava import SparseLlavaForConditionalGeneration
from modeling.user_error import UserError
from tests.tiny_processor import tiny_processor
from tests.tiny_student import tiny_student


@pytest.fixture
def folder(tmp_path):
    tiny_student().save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    return tmp_path


def test_a_sparse_checkpoint_comes_back_whole(folder):
    model, processor = load_checkpoint(folder, torch.float32)
    assert isinstance(model, SparseLlavaForConditionalGeneration)
    expected = tiny_student().state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert processor.tokenizer.eos_token == "</s>"


def test_missing_weights_are_not_made_up(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights[sorted(weights)[0]]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="1 weights are missing, first "):
        load_checkpoint(folder, torch.float32)


def test_no_weights_and_no_processor_are_named(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="not a whole sparse checkpoint"):
        load_checkpoint(folder, torch.float32)


def test_what_is_not_sparse_goes_to_the_dense_loader(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "blip"}))
    with pytest.raises(UserError, match="supported: .*'llava'"):
        load_checkpoint(folder, torch.float32)
    with pytest.raises(UserError, match="absent"):
        load_checkpoint(folder / "absent", torch.float32)


@pytest.mark.parametrize("changes", [{"visual_plan": 3}, {"vision_config": {"model_type": "nope"}}])
def test_a_sparse_config_that_transformers_refuses_is_refused(folder, changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match="not a whole sparse checkpoint"):
        load_checkpoint(folder, torch.float32)


def test_a_broken_config_is_refused(folder):
    for content, complaint in (("{", "not a JSON file"), ("[1]", "got list, expected a JSON object")):
        (folder / "config.json").write_text(content)
        with pytest.raises(UserError, match=f"config.json: {complaint}"):
            load_checkpoint(folder, torch.float32)
