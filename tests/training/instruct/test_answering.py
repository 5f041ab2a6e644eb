"""The loss of kept features and turns kept apart is that of the stock model, asked each question alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model_state_dict
from transformers import LlavaForConditionalGeneration

from checkpoints.build import load_dense
from data.collator import Collator
from data.conversations import IGNORE_INDEX, encode
from tests.families.family import DECODER
from tests.families.llava import DINOV2
from tests.training.instruct.tiny_instruct import TURNS, sample_of, tiny_processor
from training.instruct.answering import (
    LlavaOfFeatures,
    first_token_weights,
    load_adapters,
    parameter_groups,
    with_adapters,
)
from training.instruct.features import tower_features
from training.recipe.lora import LoraSettings
from training.tiny_llava.independent_turns import MASKED_ATTENTION, independent_turns


@pytest.fixture(scope="module")
def models() -> tuple[LlavaForConditionalGeneration, LlavaOfFeatures]:
    stock = DINOV2.dense()
    model = LlavaOfFeatures(DINOV2.config()).eval()
    model.load_state_dict(stock.state_dict())
    return stock, model


def packed(stock, turns=TURNS) -> dict[str, torch.Tensor]:
    """The turns as a batch of one for `LlavaOfFeatures`."""
    processor = tiny_processor()
    batch = Collator(processor)([encode(sample_of(turns), processor, 128)])
    with torch.no_grad():
        features = tower_features(stock, batch.pop("pixel_values"))
    batch = independent_turns(batch, processor.image_token_id)
    return {**batch, "features": features, **{name: batch[name].long() for name in ("input_ids", "labels")}}


def losses_alone(stock, turns=TURNS) -> list[torch.Tensor]:
    """The loss of each supervised token, of each turn by itself."""
    processor, losses = tiny_processor(), []
    for turn in turns:
        batch = Collator(processor)([encode(sample_of([turn]), processor, 128)])
        labels = batch.pop("labels")[0].long()
        with torch.no_grad():
            logits = stock(**batch).logits[0]
        supervised = labels[1:] != IGNORE_INDEX
        losses.append(F.cross_entropy(logits[:-1][supervised], labels[1:][supervised], reduction="none"))
    return losses


@pytest.mark.parametrize("attention", ["sdpa", MASKED_ATTENTION])
def test_the_loss_is_that_of_each_question_alone(models, attention):
    """Queries share keys and values in this language model, two and two."""
    stock, model = models
    assert DECODER["num_attention_heads"] > DECODER["num_key_value_heads"]
    model.model.language_model.set_attn_implementation(attention)
    batch, alone = packed(stock), torch.cat(losses_alone(stock))
    with torch.no_grad():
        torch.testing.assert_close(model(**batch)["loss"], alone.mean(), rtol=1e-5, atol=1e-6)
        everything = {**batch, "attention_mask": torch.ones_like(batch["attention_mask"]).tril()}
        assert abs(model(**everything)["loss"] - alone.mean()) > 1e-3, "turns that see one another are noticed"
        other = {**batch, "features": batch["features"].roll(1, dims=1)}
        assert abs(model(**other)["loss"] - alone.mean()) > 1e-3, "another picture is noticed"


def test_a_model_of_files_has_their_weights(models, tmp_path):
    """Words that answers are read off with are weights of their own here. transformers drops them for a subclass."""
    stock, _ = models
    assert not stock.config.tie_word_embeddings
    stock.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    model, batch, alone = LlavaOfFeatures.of(load_dense(tmp_path, "auto")[0]), packed(stock), losses_alone(stock)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch)["loss"], torch.cat(alone).mean(), rtol=1e-5, atol=1e-6)
        model.lm_head.weight.normal_(std=0.02)
        assert abs(model(**batch)["loss"] - torch.cat(alone).mean()) > 1e-3, "other words are noticed"


def test_words_that_are_tied_stay_so():
    config = DINOV2.config()
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    model = LlavaOfFeatures.of(LlavaForConditionalGeneration(config))
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_adapters_of_another_model_are_refused(models):
    adapted = with_adapters(copy.deepcopy(models[1]), LoraSettings(rank=2, alpha=4))
    weights = {name: value + 1 for name, value in get_peft_model_state_dict(adapted).items()}
    first = min(weights)
    wrong = ({}, {**weights, "more": weights[first]}, {**weights, first: weights[first][:1]})
    for other in (*wrong, {name: value for name, value in weights.items() if name != first}):
        with pytest.raises(ValueError, match="missing, unknown or of another shape, first"):
            load_adapters(adapted, other)
    load_adapters(adapted, weights)
    assert all(torch.equal(value, weights[name]) for name, value in get_peft_model_state_dict(adapted).items())


def test_the_first_token_of_an_answer_may_count_more(models):
    stock, model = models
    tokenizer, vocab = tiny_processor().tokenizer, DECODER["vocab_size"]
    losses = losses_alone(stock)
    weights = [torch.ones_like(of_turn) for of_turn in losses]
    weights[0][0] = 4  # "yes"; not the "two" that is no first token of its own
    expected = sum((weight * loss).sum() for weight, loss in zip(weights, losses, strict=True))
    yes, blue = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("yes", "blue"))
    model.token_weights = first_token_weights({yes: 4, blue: 9}, vocab)
    with torch.no_grad():
        found = model(**packed(stock))["loss"]
    model.token_weights = None
    torch.testing.assert_close(found, expected / torch.cat(weights).sum(), rtol=1e-5, atol=1e-6)


def test_projector_and_adapters_learn_and_load_into_the_stock_class(models, tmp_path):
    stock, model = models[0], copy.deepcopy(models[1])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = with_adapters(model, LoraSettings(rank=2, alpha=4))
    batch = packed(stock)
    groups = parameter_groups(adapted, 1e-2, 1e-2)
    assert all(group["params"] for group in groups)
    optimizer = torch.optim.AdamW(groups)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = adapted(**batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    adapted.save_pretrained(tmp_path)
    merged = PeftModel.from_pretrained(copy.deepcopy(stock), tmp_path).merge_and_unload()
    assert type(merged) is LlavaForConditionalGeneration
    torch.testing.assert_close(
        torch.cat(losses_alone(merged)).mean(), adapted(**batch)["loss"].detach(), rtol=1e-4, atol=1e-5
    )
    changed = {name for name, value in merged.state_dict().items() if not torch.equal(value, before[name])}
    assert all("proj" in name and "vision_tower" not in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed) and any("down_proj" in name for name in changed)
