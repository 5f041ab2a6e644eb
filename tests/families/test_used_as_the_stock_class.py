"""What others do with a stock class they do with ours, and get the same, or are told why not.

Caches of their own, packed samples, assistants, base classes, labels that mask padding alone.
"""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from modeling.visual_plan import VisualPlan
from tests.families.family import PAD, TinyFamily, as_batch, batch_of, relative_error, text_rows
from tests.families.internvl import INTERNVL
from tests.families.llava import LLAVA
from tests.families.llava_next import LLAVA_NEXT
from tests.families.qwen2_vl import QWEN2_VL

LAYERS = 3
DENSE = VisualPlan.dense(LAYERS)
PLAN = DENSE.replace(0, heads=1, ffn=5, radius=1).replace(1, attend=False).replace(2, tokens=0.0)
RANKED_BY_TEXT = VisualPlan.from_dict({"layers": [{}, {"tokens": 0.5, "rank": {"by": "text_attention"}}, {}]})
FAMILIES = (LLAVA[0], LLAVA_NEXT[2], QWEN2_VL, INTERNVL[1])

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def greedy(model) -> dict:
    """Settings of a generation of text alone, which never ends by itself."""
    silent = [PAD, *model.visual_tokens(model.config).values()]
    return {
        "max_new_tokens": 6,
        "do_sample": False,
        "pad_token_id": PAD,
        "eos_token_id": None,
        "suppress_tokens": silent,
    }


def answer(model, batch: dict, **settings) -> torch.Tensor:
    """The tokens that `generate` adds."""
    given = batch["input_ids"] if "input_ids" in batch else batch["inputs_embeds"][:, :0, 0]
    return model.generate(**batch, **settings)[:, given.shape[1] :]


def packed(model, family: TinyFamily, samples: list[dict]) -> dict:
    """Samples in one row, told apart by positions."""
    ids = [sample["input_ids"] for sample in samples]
    positions = torch.cat([torch.arange(len(of_sample)) for of_sample in ids])[None]
    if family is QWEN2_VL:
        of_axes = []
        for sample in samples:
            given = family.stock_inputs(as_batch(sample))
            sizes = (given.get("image_grid_thw"), given.get("video_grid_thw"))
            of_axes.append(model.model.get_rope_index(given["input_ids"], given["mm_token_type_ids"], *sizes)[0])
        positions = torch.cat([positions[None], torch.cat(of_axes, dim=-1)])
    pictures = {name: value for name, value in batch_of(samples).items() if name not in ("input_ids", "attention_mask")}
    return {"input_ids": torch.cat(ids)[None], "position_ids": positions, **pictures}


@families
@pytest.mark.parametrize("masked", [True, False])
def test_a_callers_cache_is_filled(family: TinyFamily, masked):
    """The loop of transformers' documentation: the caller holds the cache."""
    model, batch = family.sparse(PLAN), as_batch(family.samples(1)[1])
    settings, cache, tokens = greedy(model), DynamicCache(config=model.config), []
    inputs, mask = {name: value for name, value in batch.items() if name != "attention_mask"}, batch["attention_mask"]
    for _ in range(settings["max_new_tokens"]):
        with torch.no_grad():
            logits = model(**inputs, attention_mask=mask if masked else None, past_key_values=cache).logits[:, -1]
        logits[:, settings["suppress_tokens"]] = -torch.inf
        tokens.append(logits.argmax(-1, keepdim=True))
        inputs, mask = {"input_ids": tokens[-1]}, torch.cat([mask, torch.ones_like(tokens[-1])], dim=1)
    assert torch.equal(torch.cat(tokens, dim=1), answer(model, batch, **settings))
    assert cache.get_seq_length() == batch["input_ids"].shape[1] + len(tokens) - 1
    foreign = family.dense()(**family.stock_inputs(batch), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="past_key_values: got a DynamicCache"):
        model(**batch, past_key_values=foreign)


@families
@pytest.mark.parametrize("plan", [DENSE, PLAN], ids=["dense", "sparse"])
def test_a_second_turn_brings_a_picture(family: TinyFamily, plan):
    """By forwards, and by `generate`, which is given the whole conversation but only the new picture."""
    model, turns = family.sparse(plan), [as_batch(family.samples(seed)[1]) for seed in (1, 5)]
    whole = {
        name: torch.cat([turn[name] for turn in turns], dim=1 if name in ("input_ids", "attention_mask") else 0)
        for name in turns[0]
    }
    caches = [DynamicCache(), DynamicCache()]
    with torch.no_grad():
        for cache in caches:
            model(**turns[0], past_key_values=cache)
        second = {**turns[1], "attention_mask": whole["attention_mask"]}
        found = model(**second, past_key_values=caches[0]).logits[:, -1]
        assert relative_error(found, model(**whole).logits[:, -1]) < 1e-5
    given = {**second, "input_ids": whole["input_ids"], "past_key_values": caches[1]}
    assert torch.equal(answer(model, given, **greedy(model)), answer(model, whole, **greedy(model)))


@families
def test_packed_samples_are_kept_apart(family: TinyFamily):
    model, samples = family.sparse(PLAN), family.samples(1)
    batch = packed(model, family, samples)
    with torch.no_grad():
        outputs = model(**batch, output_hidden_states=True)
        alone = [model(**as_batch(sample), output_hidden_states=True) for sample in samples]
        assert relative_error(outputs.logits, torch.cat([one.logits for one in alone], dim=1)) < 1e-5
        for number, state in enumerate(outputs.hidden_states):
            assert relative_error(state, torch.cat([one.hidden_states[number] for one in alone], dim=1)) < 1e-5
        mixed = model(**batch, attention_mask=torch.ones_like(batch["input_ids"])).logits
        assert relative_error(mixed, outputs.logits) > 1e-3  # with a mask it is one sample
    text = {"input_ids": batch["input_ids"][:, :3]}
    for arguments, message in (
        ({**batch, "use_cache": True}, "packed samples, which have no cache"),
        ({**text, "cu_seq_lens_q": torch.tensor([0, 2, 3])}, "cu_seq_lens_q: got where packed samples begin"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**arguments)


@families
def test_the_base_class_runs_under_the_plan(family: TinyFamily, tmp_path):
    model, batch = family.sparse(PLAN), as_batch(family.samples(1)[1])
    model.save_pretrained(tmp_path)
    base = type(model).model_class.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = model.model(**batch).last_hidden_state
        assert base.visual_plan == PLAN
        torch.testing.assert_close(base(**batch).last_hidden_state, expected)
        with base.use_plan(DENSE):
            assert relative_error(base(**batch).last_hidden_state, expected) > 1e-3


@families
def test_a_config_of_defaults_has_a_sparse_text_model(family: TinyFamily):
    assert type(family.sparse().config)().text_config.model_type.startswith("sparse_")


@families
def test_assisted_generation_gives_the_same_tokens(family: TinyFamily):
    """By prompt lookup and by a draft, whose candidates are refused now and then."""
    model, draft, batch = family.sparse(PLAN), family.sparse(PLAN), as_batch(family.samples(1)[1])
    with torch.no_grad():
        torch.manual_seed(7)
        for parameter in draft.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    expected = answer(model, batch, **greedy(model))
    assert torch.equal(answer(model, batch, **greedy(model), prompt_lookup_num_tokens=3), expected)
    assert torch.equal(answer(model, batch, **greedy(model), assistant_model=draft), expected)


@families
def test_a_sparse_draft_sees_the_pictures_of_its_dense_teacher(family: TinyFamily):
    """A draft that is the teacher itself is right at every token, so that the teacher runs less often."""
    dense, draft, batch = family.dense(), family.sparse(DENSE), as_batch(family.samples(1)[1])
    given, calls = family.stock_inputs(batch), []
    expected = answer(dense, given, **greedy(draft))
    dense.register_forward_pre_hook(lambda *_: calls.append(1))
    draft.generation_config.num_assistant_tokens = 5
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    assert torch.equal(answer(dense, given, **greedy(draft), assistant_model=draft), expected)
    assert len(calls) < 3


@families
def test_prompts_padded_on_the_right_are_answered(family: TinyFamily):
    """transformers warns of them, and the stock class goes on from padding."""
    model, samples = family.sparse(PLAN), family.samples(1)
    answers = answer(model, batch_of(samples, "right"), **greedy(model))
    for sample, found in zip(samples, answers, strict=True):
        assert torch.equal(found[None], answer(model, as_batch(sample), **greedy(model)))


@families
def test_embeddings_may_be_the_prompt(family: TinyFamily):
    model, batch = family.sparse(PLAN), as_batch(family.samples(1)[1])
    expected = answer(model, batch, **greedy(model))
    batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids")).detach()
    assert torch.equal(answer(model, batch, **greedy(model)), expected)


@families
def test_chosen_hidden_states_come_with_gradients(family: TinyFamily):
    model, batch = family.sparse(PLAN), as_batch(family.samples(1)[1])
    outputs = model(**batch, output_hidden_states=True)
    for state in outputs.hidden_states:
        state.retain_grad()
    outputs.logits[:, -1].sum().backward()
    assert all(state.grad is not None and bool(state.grad.any()) for state in outputs.hidden_states)
    chosen = model(**batch, output_hidden_states=[0, -2, 9]).hidden_states
    assert [state is None for state in chosen] == [False, True, False, True]
    torch.testing.assert_close(chosen[2], outputs.hidden_states[2])


@families
def test_labels_at_pictures_do_not_count(family: TinyFamily):
    """Collators of others mask padding alone. A token right after a visual one has nothing that predicts it."""
    model, batch = family.sparse(PLAN), as_batch(family.samples(1)[2])
    every = batch["input_ids"].clone()
    is_text = text_rows(model, batch)[0]
    with torch.no_grad():
        outputs = model(**batch, labels=every)
        logits, states = outputs.logits[0], model.model(**batch).last_hidden_state[0]
    predicts = is_text[1:] & states[:-1].any(-1)
    assert not bool(predicts.all())
    expected = torch.nn.functional.cross_entropy(logits[:-1][predicts], every[0, 1:][predicts])
    torch.testing.assert_close(outputs.loss, expected)
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    torch.testing.assert_close(model(**batch, inputs_embeds=embeds, labels=every).loss, expected)


@families
def test_what_generation_cannot_do_is_refused(family: TinyFamily):
    model, batch = family.sparse(RANKED_BY_TEXT), as_batch(family.samples(1)[1])
    static = StaticCache(config=model.config.text_config, max_cache_len=64)
    refused = [
        ({"prefill_chunk_size": 4}, "prefill_chunk_size: got 4, allowed: None"),
        ({"cache_implementation": "static"}, "cache_implementation: got 'static', allowed: None, 'dynamic'"),
        ({"past_key_values": static}, "past_key_values: got a StaticCache"),
        ({"prompt_lookup_num_tokens": 3}, "layer 1 of the visual plan ranks visual tokens by the attention of text"),
        ({"assistant_model": family.sparse()}, "layer 1 of the visual plan ranks visual tokens"),
    ]
    if family not in LLAVA_NEXT:  # whose pictures end with a newline
        image = torch.tensor([[next(iter(model.visual_tokens(model.config).values()))]])
        refused.append(({"input_ids": image, "attention_mask": None}, "a prompt ends with a picture"))
    for settings, message in refused:
        with pytest.raises(ValueError, match=message):
            model.generate(**{**batch, **greedy(model), **settings})
    for kind in ("flash_attention_2", "flex_attention", {"text_config": "flash_attention_2"}):
        with pytest.raises(ValueError, match=r"attn_implementation: got '.*', allowed: 'sdpa', 'eager'"):
            model.set_attn_implementation(kind)
