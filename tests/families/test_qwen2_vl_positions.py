"""Positions of Qwen2-VL: given in two dimensions, counted on from the cache, and pictures that are missing."""

import pytest
import torch
from transformers import DynamicCache

from modeling.visual_plan import VisualPlan
from tests.families.family import as_batch, batch_of, relative_error
from tests.families.qwen2_vl import QWEN2_VL

PLAN = VisualPlan.dense(3).replace(0, heads=1, radius=1).replace(2, tokens=0.0)


def test_positions_of_two_dimensions_are_those_of_the_stock_model():
    dense, sparse, batch = QWEN2_VL.dense(), QWEN2_VL.sparse(), as_batch(QWEN2_VL.samples(1)[1])
    given = {**QWEN2_VL.stock_inputs(batch), "position_ids": torch.arange(batch["input_ids"].shape[1])[None]}
    with torch.no_grad():
        expected, found = dense(**given).logits[:, -1], sparse(**given).logits[:, -1]
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
def test_another_request_between_two_turns_changes_nothing(side):
    """The stock model keeps the offset of positions in itself, and answers with that of the other request."""
    model, samples = QWEN2_VL.sparse(PLAN), QWEN2_VL.samples(1)
    turn, more = batch_of(samples, side), torch.tensor([[40, 41], [42, 43], [44, 45]])
    mask = torch.cat([turn["attention_mask"], torch.ones_like(more)], dim=1)
    alone = [
        model(**{**as_batch(sample), "input_ids": ids, "attention_mask": None}, use_cache=False).logits[:, -1]
        for sample, tokens in zip(samples, more, strict=True)
        for ids in [torch.cat([sample["input_ids"], tokens])[None]]
    ]
    cache = DynamicCache()
    with torch.no_grad():
        model(**turn, past_key_values=cache)
        model(**as_batch(QWEN2_VL.samples(2)[2]))
        model.generate(**as_batch(QWEN2_VL.samples(2)[2]), max_new_tokens=2, pad_token_id=0)
        found = model(input_ids=more, attention_mask=mask, past_key_values=cache).logits[:, -1]
    assert relative_error(found, torch.cat(alone)) < 1e-5


def test_missing_pictures_and_sizes_are_named():
    model, batch = QWEN2_VL.sparse(), as_batch(QWEN2_VL.samples(1)[2])
    first = int(batch["image_grid_thw"][0].prod())
    one_missing = {
        **batch,
        "pixel_values": batch["pixel_values"][:first],
        "image_grid_thw": batch["image_grid_thw"][:1],
    }
    no_sizes = {name: value for name, value in batch.items() if name != "image_grid_thw"}
    for inputs, message in (
        (one_missing, "image_grid_thw: got 1 sizes, the rows that are not cached have places for 2"),
        (no_sizes, "image_grid_thw: got none"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**inputs)
    with pytest.raises(ValueError, match="image_grid_thw: got 1 sizes"):
        model.generate(**one_missing, max_new_tokens=2)
