"""Sparse LLaVA as a transformers model: the dense plan is LLaVA; cached, batched and saved runs agree."""

import copy

import pytest
import torch
from transformers import DynamicCache, LlavaConfig, LlavaForConditionalGeneration, StaticCache

from modeling.visual_cache import VisualCache
from modeling.visual_flops import DecoderShape, kv_bytes
from modeling.visual_plan import VisualPlan
from tests.modeling.random_plans import random_plan
from tests.modeling.test_sparse_decoder import forward_inputs, relative_error, text_rows
from tests.tiny_student import IMAGE_TOKEN, tiny_batch, tiny_student

LAYERS, UNITS, NEURONS = 3, 2, 24
PLANS = [random_plan(seed, LAYERS, UNITS, NEURONS) for seed in (0, 3, 5, 7)]


def dense_twin(model) -> LlavaForConditionalGeneration:
    """The stock model with the same weights."""
    given = model.config.to_dict()
    config = LlavaConfig(
        text_config={**given["text_config"], "model_type": "llama"},
        vision_config=given["vision_config"],
        image_seq_length=given["image_seq_length"],
        image_token_id=IMAGE_TOKEN,
    )
    dense = LlavaForConditionalGeneration(config).eval()
    dense.load_state_dict(model.state_dict())
    return dense


@pytest.fixture
def model():
    return tiny_student(LAYERS)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_dense_plan_is_the_stock_model(num_kv_heads, padding_side):
    sparse = tiny_student(LAYERS, num_kv_heads=num_kv_heads, initializer_range=0.1)  # as mild as trained weights
    dense = dense_twin(sparse)
    batch = tiny_batch((0, 1, 2), padding_side=padding_side)
    rows = text_rows(batch)
    outputs = [one(**batch) for one in (dense, sparse)]
    assert relative_error(outputs[1].logits[rows], outputs[0].logits[rows]) < 2e-6
    assert abs(float(outputs[1].loss - outputs[0].loss)) < 2e-6 * float(outputs[0].loss)
    for one in outputs:
        one.loss.backward()
    stock = {name: p.grad for name, p in dense.named_parameters() if p.grad is not None}
    mine = dict(sparse.named_parameters())
    for name, gradient in stock.items():
        assert float((mine[name].grad - gradient).abs().max()) < 1e-5 * max(float(gradient.abs().max()), 0.1), name
    whole = [
        torch.cat([gradients[name].flatten() for name in stock])
        for gradients in ({n: p.grad for n, p in mine.items()}, stock)
    ]
    assert float((whole[0] - whole[1]).norm() / whole[1].norm()) < 2e-6


def test_the_comparison_with_the_stock_model_can_fail():
    model = tiny_student(LAYERS, initializer_range=0.1)
    dense, batch = dense_twin(model), tiny_batch((1,))
    rows = text_rows(batch)
    with torch.no_grad():
        expected = dense(**forward_inputs(batch)).logits[rows]
        with model.use_plan(VisualPlan.dense(LAYERS).replace(0, heads=1)):
            assert relative_error(model(**forward_inputs(batch)).logits[rows], expected) > 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "top_k": 5},
    ],
    ids=["greedy", "beam", "sampling"],
)
def test_dense_plan_generates_as_the_stock_model(model, settings):
    batch = forward_inputs(tiny_batch((0, 1, 2), padding_side="left"))
    answers = []
    for one in (dense_twin(model), model):
        torch.manual_seed(0)
        answers.append(one.generate(**batch, max_new_tokens=20, pad_token_id=0, eos_token_id=None, **settings))
    assert torch.equal(*answers)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("num_beams", [1, 2])
def test_cached_generation_equals_uncached(model, plan, num_beams):
    # With several pictures in one sample, transformers 5.17 repeats them for beams in another order than their tokens.
    batch = forward_inputs(tiny_batch((0, 1, 2) if num_beams == 1 else (0, 1, 1), padding_side="left"))
    with model.use_plan(plan):
        cached, uncached = (
            model.generate(
                **batch,
                max_new_tokens=8,
                do_sample=False,
                num_beams=num_beams,
                use_cache=use_cache,
                pad_token_id=0,
                eos_token_id=None,
                suppress_tokens=[IMAGE_TOKEN],
            )
            for use_cache in (True, False)
        )
    if any(layer.keep and layer.rank.by == "text_attention" for layer in plan.live(UNITS, NEURONS)):
        # Without a cache the tokens would be ranked again from every new token: only the first is comparable.
        width = batch["input_ids"].shape[1] + 1
        cached, uncached = cached[:, :width], uncached[:, :width]
        if num_beams > 1:
            return
    assert torch.equal(cached, uncached)


@pytest.mark.parametrize(
    "plan",
    [
        *(plan for plan in PLANS if not any(layer.keep for layer in plan.live(UNITS, NEURONS))),
        VisualPlan.dense(LAYERS).replace(1, heads=(1,), tokens=1.0).replace(2, tokens=0),
        VisualPlan.dense(LAYERS).replace(0, radius=1, bidirectional=True),
        VisualPlan.dense(LAYERS).replace(0, read=False, radius=1),
    ],
)
@pytest.mark.parametrize("images", [(1, 1), (0, 1)])
def test_turns_with_a_cache_equal_one_forward(model, plan, images):
    """A first turn, a second with a new picture in one sample, a third of text: rows as in one uncached forward."""
    batch = forward_inputs(tiny_batch((2, 2), seed=4))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    second = (ids[0] == IMAGE_TOKEN).nonzero()[9:].min().item() - 1  # both samples' second picture lies behind it
    if (ids[1, :second] == IMAGE_TOKEN).sum() != 9 or images == (0, 1):
        second = 1  # the first turn is text alone
    first_images = int((ids[:, :second] == IMAGE_TOKEN).sum()) // 9
    order = [0, 2, 1, 3] if first_images == 2 else [0, 1, 2, 3]
    pixels = batch["pixel_values"][order]
    third = ids.shape[1] - 1

    def in_turns() -> list[torch.Tensor]:
        cache, parts = None, []
        for begin, end, pictures in (
            (0, second, pixels[:first_images]),
            (second, third, pixels[first_images:]),
            (third, ids.shape[1], pixels[:0]),
        ):
            inputs = {"pixel_values": pictures} if len(pictures) else {}
            output = model(
                input_ids=ids[:, begin:end],
                attention_mask=mask[:, :end],
                past_key_values=cache,
                use_cache=True,
                **inputs,
            )
            cache = output.past_key_values
            parts.append(output.logits)
        return parts

    with torch.no_grad(), model.use_plan(plan):
        if any(layer.attend and not layer.read and layer.radius is None for layer in plan.live(UNITS, NEURONS)):
            with pytest.raises(ValueError, match="is blind, so the cache does not hold"):
                in_turns()
            return
        whole, parts = model(**batch).logits, in_turns()
    if first_images == 2:
        whole_order = batch["pixel_values"][[0, 1, 2, 3]]
        assert torch.equal(whole_order, batch["pixel_values"])
    rows = text_rows(batch)
    assert relative_error(torch.cat(parts, dim=1)[rows], whole[rows]) < 1e-5


@pytest.mark.parametrize("plan", [*PLANS, VisualPlan.dense(LAYERS)])
def test_cache_takes_the_bytes_the_plan_predicts(model, plan):
    batch = forward_inputs(tiny_batch((2,)))
    with torch.no_grad(), model.use_plan(plan):
        cache = model(**batch, use_cache=True).past_key_values
    num_text = int((batch["input_ids"] != IMAGE_TOKEN).sum())
    shape = DecoderShape.from_config(model.config.text_config)
    assert cache.num_bytes() == kv_bytes(plan, shape, [((3, 3),), ((3, 3),)], num_text, bytes_per_value=4)
    assert cache.get_seq_length() == batch["input_ids"].shape[1]


def test_withdrawn_tokens_take_no_room(model):
    plan = VisualPlan.dense(LAYERS).replace(0, heads=1).replace(1, tokens=0)
    with torch.no_grad(), model.use_plan(plan):
        cache = model(**forward_inputs(tiny_batch((1,))), use_cache=True).past_key_values
    assert cache.layers[0].joint_keys.shape[1] == 1 and cache.layers[1].joint_keys is None


def test_caches_of_other_kinds_are_refused(model):
    batch = forward_inputs(tiny_batch((0,)))
    static = StaticCache(config=model.config.text_config, max_cache_len=64)
    with pytest.raises(ValueError, match="got a StaticCache"):
        model(**batch, past_key_values=static)
    filled = DynamicCache()
    filled.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8), 0)
    with pytest.raises(ValueError, match="empty DynamicCache"):
        model(**batch, past_key_values=filled)
    assert isinstance(model(**batch, use_cache=True).past_key_values, VisualCache)


def test_logits_mask_selects_rows(model):
    batch = tiny_batch((0, 1, 2))
    mask = batch["labels"] != -100
    with torch.no_grad():
        assert torch.allclose(
            model(**forward_inputs(batch), logits_mask=mask).logits,
            model(**forward_inputs(batch)).logits[mask],
            atol=1e-6,
        )


def test_image_features_may_be_computed_once(model):
    batch = forward_inputs(tiny_batch((1, 2)))
    with torch.no_grad():
        expected = model(**batch).logits
        encoded = model.get_image_features(batch.pop("pixel_values"), return_dict=True)
        assert torch.equal(model(**batch, mm_encoder_outputs={"image": encoded}).logits, expected)


def test_what_cannot_be_done_is_refused(model):
    batch = forward_inputs(tiny_batch((1,)))
    with pytest.raises(ValueError, match="output_attentions"):
        model(**batch, output_attentions=True)
    with pytest.raises(ValueError, match="no pictures were given"):
        model(input_ids=batch["input_ids"])
    with pytest.raises(ValueError, match="attention_mask: got shape"):
        model(**{**batch, "attention_mask": batch["attention_mask"][:, 1:]})
    with pytest.raises(ValueError, match="image tokens"):
        model(**{**batch, "pixel_values": batch["pixel_values"].repeat(2, 1, 1, 1)})


def test_plan_in_a_block_is_undone(model):
    other = VisualPlan.dense(LAYERS).replace(0, ffn=0)
    config = copy.deepcopy(model.config.visual_plan)

    def fail_under_the_plan() -> None:
        with model.use_plan(other):
            assert model.visual_plan == other
            raise RuntimeError("as it happens")

    with pytest.raises(RuntimeError, match="as it happens"):
        fail_under_the_plan()
    assert model.visual_plan == VisualPlan.dense(LAYERS) and model.config.visual_plan == config
