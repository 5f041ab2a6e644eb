"""Every family does what transformers asks of its models in its common model and generation tests.

Under the dense plan the sparse class does as the stock class. Under a sparse plan all ways of running it agree.
"""

import pytest
import torch

from modeling.layer_plan import Rank
from modeling.visual_plan import VisualPlan
from tests.families.family import (
    TinyFamily,
    as_batch,
    batch_of,
    relative_error,
    text_rows,
    with_telling_class_token,
)
from tests.families.qwen2_vl import QWEN2_VL
from tests.families.test_families import LAYERS, families

PLAN = VisualPlan.dense(LAYERS).replace(0, heads=1, ffn=5, radius=1).replace(1, attend=False).replace(2, tokens=0.0)
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@families
def test_it_loads_as_it_was_saved(family: TinyFamily, tmp_path):
    model, batch = family.sparse(PLAN), batch_of(family.samples(0))
    rows = text_rows(model, batch)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**batch).logits[rows]
        for dtype, closeness in ((torch.float32, 1e-6), (torch.float16, 0.05), (torch.bfloat16, 0.3)):
            loaded = type(model).from_pretrained(tmp_path, dtype=dtype)
            assert loaded.dtype == dtype and loaded.visual_plan == PLAN
            given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
            assert relative_error(loaded(**given).logits[rows].float(), expected) < closeness


@families
def test_layers_may_lie_on_other_devices(family: TinyFamily, tmp_path):
    """A device map that keeps the last layer of the decoder on disk; and the one that transformers finds."""
    model, batch = family.sparse(PLAN.replace(2, tokens=1.0, heads=1)), batch_of(family.samples(0))
    model.save_pretrained(tmp_path / "model")
    decoder = "model.language_model"
    own = [*model.model.named_children(), *model.model.named_parameters(recurse=False)]
    parts = [f"model.{name}" for name, _ in own] + ["lm_head"]
    parts += [f"{decoder}.{name}" for name, _ in model.get_submodule(decoder).named_children()]
    parts += [f"{decoder}.layers.{index}" for index in range(LAYERS)]
    split = {name: "cpu" for name in parts if name not in (decoder, f"{decoder}.layers")}
    split[f"{decoder}.layers.{LAYERS - 1}"] = "disk"
    with torch.no_grad():
        expected = model(**batch).logits
        for device_map in (split, "auto"):
            loaded = type(model).from_pretrained(
                tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
            )
            assert relative_error(loaded(**batch).logits, expected) < 1e-5


@families
@pytest.mark.parametrize("num_beams", [1, 2])
def test_generation_with_a_cache_equals_that_without(family: TinyFamily, num_beams):
    # The last sample's several pictures transformers 5.17 repeats for beams in another order than their tokens.
    model, batch = family.sparse(PLAN), batch_of(family.samples(1)[:2], "left")
    visual = list(model.visual_tokens(model.config).values())
    answers = [
        model.generate(**batch, **GREEDY, num_beams=num_beams, use_cache=use_cache, suppress_tokens=visual)
        for use_cache in (True, False)
    ]
    assert torch.equal(*answers)


@families
def test_embeddings_serve_as_input(family: TinyFamily):
    model, batch = family.sparse(PLAN), as_batch(family.samples(2)[-1])
    ids = batch.pop("input_ids")
    with torch.no_grad():
        expected = model(input_ids=ids, **batch).logits
        assert relative_error(model(inputs_embeds=model.get_input_embeddings()(ids), **batch).logits, expected) < 1e-6


@families
def test_hidden_states_are_the_stock_models(family: TinyFamily):
    dense, sparse, batch = family.dense(), family.sparse(), as_batch(family.samples(2)[-1])
    rows = text_rows(sparse, batch)
    with torch.no_grad():
        theirs = dense(**family.stock_inputs(batch), output_hidden_states=True).hidden_states
        mine = sparse(**batch, output_hidden_states=True).hidden_states
    assert len(mine) == len(theirs) == LAYERS + 1
    for own, stock in zip(mine[:-1], theirs[:-1], strict=True):
        assert relative_error(own, stock) < 1e-5
    assert relative_error(mine[-1][rows], theirs[-1][rows]) < 1e-5  # nothing reads visual tokens after the last layer


@families
def test_embeddings_can_be_resized(family: TinyFamily):
    model, batch = family.sparse(PLAN), batch_of(family.samples(2))
    words = model.config.text_config.vocab_size
    with torch.no_grad():
        expected = model(**batch).logits
        model.resize_token_embeddings(words + 8)
        logits = model(**batch).logits
    assert logits.shape[-1] == model.config.text_config.vocab_size == words + 8
    assert torch.equal(logits[..., :words], expected)


@pytest.mark.slow  # half a minute for each
@families
def test_compiled_it_answers_alike(family: TinyFamily):
    plan = PLAN if family is QWEN2_VL else PLAN.replace(1, tokens=0.6, rank=Rank(by="cls_attention"))
    model, batch = with_telling_class_token(family.sparse(plan)), batch_of(family.samples(2))
    torch.compiler.reset()  # what other models were compiled for is not to be generalised
    with torch.no_grad():
        expected = model(**batch).logits
        assert relative_error(torch.compile(model, backend="aot_eager")(**batch).logits, expected) < 1e-5


@families
def test_checkpointed_layers_give_the_same_gradients(family: TinyFamily):
    batch = {**batch_of(family.samples(2)), "labels": batch_of(family.samples(2))["input_ids"]}
    gradients = []
    for checkpointing in (False, True):
        model = family.sparse(PLAN).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**batch).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-5, atol=1e-6)


@families
def test_eager_attention_is_sdpa(family: TinyFamily):
    batch, logits = batch_of(family.samples(2)), []
    for attention in ("sdpa", "eager"):
        model = family.sparse(PLAN)
        model.set_attn_implementation(attention)
        with torch.no_grad():
            logits.append(model(**batch).logits[text_rows(model, batch)])
    assert relative_error(*logits) < 1e-5


@families
def test_what_cannot_be_done_is_refused(family: TinyFamily):
    model, batch = family.sparse(), as_batch(family.samples(2)[-1])
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for inputs, message in (
        ({**batch, "output_attentions": True}, "output_attentions"),
        (text, "no pictures were given"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**inputs)
    with pytest.raises(ValueError, match="(?i)flash"):
        model.set_attn_implementation("flash_attention_2")
