"""Turns kept apart give what each question would give alone."""

import pytest
import torch
from PIL import Image

from data.collator import Collator
from data.conversations import IGNORE_INDEX, encode
from data.sample import Sample
from training.recipe.dense import TinyLlavaSettings
from training.tiny_llava.independent_turns import MASKED_ATTENTION, independent_turns
from training.tiny_llava.model import build_model, build_processor

TURNS = (("Is it red?", "yes"), ("How many are there?", "47"), ("What is it?", "a big red cross"))
SETTINGS = TinyLlavaSettings(
    image_size=32,
    patch_size=16,
    tower_hidden_size=32,
    tower_intermediate_size=32,
    tower_layers=1,
    hidden_size=64,
    intermediate_size=64,
    layers=2,
)


@pytest.fixture
def setting(tmp_path):
    torch.manual_seed(0)
    processor = build_processor(SETTINGS, [text for turn in TURNS for text in turn])
    image = tmp_path / "a.png"
    Image.effect_noise((32, 32), 90).convert("RGB").save(image)
    return build_model(SETTINGS, processor, 128).eval(), processor, image


def sample(image, *turns) -> Sample:
    (question, answer), *rest = turns
    return Sample("a", (image,), ((f"<image>\n{question}", answer), *rest), None)


def answer_logits(model, batch) -> list[torch.Tensor]:
    """Logits that predict the supervised tokens, row by row."""
    with torch.no_grad():
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    return [row[:-1][labels[1:] != IGNORE_INDEX] for row, labels in zip(logits, batch["labels"], strict=True)]


def test_each_turn_reads_as_if_it_were_alone(setting):
    model, processor, image = setting
    collate = Collator(processor)
    together = collate([encode(sample(image, *TURNS), processor, 128), encode(sample(image, TURNS[1]), processor, 128)])
    apart = torch.cat(
        [answer_logits(model, collate([encode(sample(image, turn), processor, 128)]))[0] for turn in TURNS]
    )
    packed, short = answer_logits(model, independent_turns(together, processor.image_token_id))
    torch.testing.assert_close(packed, apart, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(short, apart[2:5], rtol=1e-4, atol=1e-5)  # 4, 7, end: beside a longer row
    conversation, _ = answer_logits(model, together)
    assert (conversation[2:] - apart[2:]).abs().max() > 1e-3  # the check can fail: a conversation differs


def test_attention_product_by_product_is_attention(setting):
    model, processor, image = setting
    batch = Collator(processor)([encode(sample(image, *TURNS[:count]), processor, 128) for count in (1, 3)])
    packed = independent_turns(batch, processor.image_token_id)
    fused = answer_logits(model, packed)
    model.model.language_model.set_attn_implementation(MASKED_ATTENTION)
    for one, other in zip(answer_logits(model, packed), fused, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    everything = {**packed, "attention_mask": torch.ones_like(packed["attention_mask"])}
    assert (answer_logits(model, everything)[0] - fused[0]).abs().max() > 1e-3  # the mask is heeded


def test_every_token_sees_itself_and_nothing_later(setting):
    _, processor, image = setting
    batch = Collator(processor)([encode(sample(image, *TURNS[:count]), processor, 128) for count in (1, 3)])
    packed = independent_turns(batch, processor.image_token_id)
    visible = packed["attention_mask"][:, 0]
    assert visible.diagonal(dim1=1, dim2=2).all() and not visible.triu(1).any()
    assert packed["position_ids"].max() < batch["input_ids"].shape[1]
    assert batch["attention_mask"].dim() == 2  # the batch given is left as it was
