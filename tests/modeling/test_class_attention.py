"""The class token's rows are those of the tower's eager attention, and come without what they are computed from."""

from dataclasses import replace

import pytest
import torch
from transformers import InternVLConfig

from modeling.class_attention import ScoredFeatures, class_attention_of
from tests.families.family import with_telling_class_token
from tests.families.internvl import INTERNVL
from tests.families.llava import DINOV2, LLAVA
from tests.modeling.masked_reference import class_rows


def internvl_with_normed_queries() -> InternVLConfig:
    """As the tower of InternVL2-26B has them."""
    config = INTERNVL[0].config()
    config.vision_config.use_qk_norm = True
    return config


FAMILIES = [LLAVA[0], DINOV2, replace(INTERNVL[0], config=internvl_with_normed_queries)]


@pytest.mark.parametrize("family", FAMILIES, ids=["clip", "dinov2", "normed internvl"])
@pytest.mark.parametrize("read", [-1, -2, 1])
def test_rows_are_those_of_eager_attention(family, read):
    model, generator = with_telling_class_token(family.sparse()).model, torch.Generator().manual_seed(0)
    for name, value in model.vision_tower.named_parameters():
        if "norm" in name and name.endswith("weight"):
            value.data.uniform_(0.5, 2, generator=generator)
    pixels = family.samples(1)[2]["pixel_values"]
    blocks = model.class_blocks(read)
    with torch.no_grad():
        expected = class_rows(model.vision_tower, pixels)[..., : len(blocks)]
        plain = model.get_image_features(pixels, vision_feature_layer=read)
        for layers in range(1, len(blocks) + 1):
            for block, number in zip(blocks[-layers:], range(len(blocks) - layers, len(blocks)), strict=True):
                states = model.vision_tower(pixels, output_hidden_states=True).hidden_states[number]
                torch.testing.assert_close(block.class_attention(states), expected[..., number], rtol=1e-5, atol=1e-6)
            scored = model.get_image_features(pixels, vision_feature_layer=read, tower_layers=layers)
            assert isinstance(scored, ScoredFeatures) and scored.hidden_states is None
            torch.testing.assert_close(torch.cat(list(scored.pooler_output)), torch.cat(list(plain.pooler_output)))
            found = class_attention_of(scored)
            assert found.shape[1] == layers
            if family in LLAVA:  # InternVL takes means over patches
                torch.testing.assert_close(found, expected[..., -layers:].flatten(0, 1), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(expected, expected.mean(1, keepdim=True), rtol=0.1), "patches are attended to alike"


def test_hidden_states_that_are_asked_for_are_given():
    model = LLAVA[0].sparse().model
    pixels = LLAVA[0].samples(1)[1]["pixel_values"]
    scored = model.get_image_features(pixels, tower_layers=1, output_hidden_states=True)
    assert len(scored.hidden_states) == 4 and all(states is not None for states in scored.hidden_states)
