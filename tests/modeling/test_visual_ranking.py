"""Each ranking of visual tokens equals the slow reference, with ties and in generation. A seed fixes a random one."""

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling import visual_ranking
from modeling.class_attention import llava_class_blocks
from modeling.layer_plan import Rank
from modeling.stream_split import split_streams
from modeling.visual_plan import VisualPlan
from tests.modeling.test_sparse_decoder import IMAGES, forward_inputs, reference_batch, relative_error, text_rows
from tests.tiny_student import IMAGE_TOKEN, tiny_batch, tiny_student

LAYERS = 4
NEAR = {"radius": 1, "bidirectional": True}
RANKINGS = {
    "last": ({"heads": [1]}, {"by": "text_attention"}),
    "instruction": ({}, {"by": "text_attention", "rows": "instruction"}),
    "image": ({}, {"by": "image_attention"}),
    "image, blind": ({"read": False, "heads": [1]}, {"by": "image_attention"}),
    "image, near": (NEAR, {"by": "image_attention"}),
    "class token": ({"read": False}, {"by": "cls_attention"}),
    "uniform": ({"read": False}, {"by": "uniform"}),
    "random": ({"attend": False}, {"by": "random", "seed": 3}),
    "random, another seed": ({"attend": False}, {"by": "random", "seed": 4}),
}
"""What layers do above those where tokens fall, and by what these fall."""


@pytest.fixture(autouse=True)
def few_queries_at_once(monkeypatch):
    monkeypatch.setattr(visual_ranking, "QUERIES_AT_ONCE", 4)


def falling(above: dict, rank: dict, first: float = 1.0) -> VisualPlan:
    """Tokens fall in two layers, and where nothing precedes it, in the first as well."""
    entries = [
        {**above, "tokens": first, "rank": {"by": "uniform"}},
        {**above, "tokens": 0.6, "rank": rank},
        {"tokens": 0.3, "rank": rank},
        {},
    ]
    return VisualPlan.from_dict({"layers": entries})


PLANS = {name: falling(*ranking) for name, ranking in RANKINGS.items()} | {
    "cut at once": VisualPlan.from_dict(
        {
            "layers": [
                {"tokens": 0.7, "rank": {"by": "random"}},
                {},
                {"tokens": 0.4, "rank": {"by": "image_attention"}},
                {},
            ]
        }
    ),
    "class token, at once": VisualPlan.from_dict(
        {"layers": [{"tokens": 0.6, "rank": {"by": "cls_attention"}}, {}, {}, {}]}
    ),
    "seldom": falling({}, {"by": "image_attention"}, first=0.8),
}
plans = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())


@plans
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_rankings_equal_the_masked_reference(plan, padding_side):
    model, batch = tiny_student(LAYERS), tiny_batch(IMAGES, padding_side=padding_side)
    with torch.no_grad(), model.use_plan(plan):
        got = model(**forward_inputs(batch)).logits[text_rows(batch)]
    assert relative_error(got, reference_batch(model, plan, batch)) < 1e-5


def test_rankings_differ():
    """Were one ranking taken for another, the comparison would show it."""
    model, batch = tiny_student(LAYERS), tiny_batch(IMAGES)
    found = {}
    for name, (_, rank) in RANKINGS.items():
        with torch.no_grad(), model.use_plan(falling({}, rank)):
            found[name] = model(**forward_inputs(batch)).logits[text_rows(batch)]
    del found["image, blind"], found["image, near"]  # here the layers above are the same
    for name, logits in found.items():
        others = [relative_error(other, logits) for other_name, other in found.items() if other_name != name]
        assert min(others) > 1e-3, name


@plans
def test_equal_tokens_are_kept_in_order(plan):
    """With pictures of one colour and keys of zero, all tokens that see their neighbours alone receive the same."""
    model, batch = tiny_student(LAYERS), tiny_batch(IMAGES)
    batch["pixel_values"] = torch.ones_like(batch["pixel_values"])
    for layer in model.model.language_model.layers:
        torch.nn.init.zeros_(layer.self_attn.k_proj.weight)
    for radius in (0, None):
        cut = plan
        for index in range(LAYERS):
            cut = cut.replace(index, radius=radius, bidirectional=False)
        with torch.no_grad(), model.use_plan(cut):
            got = model(**forward_inputs(batch)).logits[text_rows(batch)]
        assert relative_error(got, reference_batch(model, cut, batch)) < 1e-5


@plans
def test_gradients_equal_the_masked_reference(plan):
    model, batch = tiny_student(LAYERS).train(), tiny_batch(IMAGES)
    weights = torch.randn(
        int(text_rows(batch).sum()), model.config.text_config.vocab_size, generator=torch.Generator().manual_seed(0)
    )
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        with model.use_plan(plan):
            (model(**batch).logits[text_rows(batch)] * weights).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    (reference_batch(model, plan, batch, train=True) * weights).sum().backward()
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for mine in gradients:
            scale = max(float(expected.abs().max()), 0.1)  # key biases have no gradient but rounding
            assert float((mine.get(name, torch.zeros_like(expected)) - expected).abs().max()) < 1e-4 * scale, name


@pytest.mark.parametrize("name", ["image", "image, near", "class token, at once", "uniform", "random", "cut at once"])
def test_cached_generation_equals_uncached(name):
    """No text ranks these: without a cache, the same tokens survive at every step."""
    model, batch = tiny_student(LAYERS), forward_inputs(tiny_batch(IMAGES, padding_side="left"))
    settings = {
        "max_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
        "suppress_tokens": [IMAGE_TOKEN],
    }
    with model.use_plan(PLANS[name]):
        assert torch.equal(*(model.generate(**batch, use_cache=use_cache, **settings) for use_cache in (True, False)))


def test_a_class_token_that_is_not_there_is_refused():
    """Features that came without its attention; a tower without one."""
    model, batch = tiny_student(LAYERS), forward_inputs(tiny_batch((1,)))
    features = BaseModelOutputWithPooling(
        pooler_output=model.get_image_features(batch.pop("pixel_values")).pooler_output
    )
    with (
        model.use_plan(PLANS["class token"]),
        pytest.raises(ValueError, match="attention in 0 layers of the vision tower, the plan wants 1"),
    ):
        model(**batch, mm_encoder_outputs={"image": features})
    siglip = SiglipVisionModel(
        SiglipVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    )
    assert llava_class_blocks(siglip, -1) == [] and len(llava_class_blocks(model.vision_tower, -1)) == 2
    model.model.vision_tower, model.config.vision_config = siglip, siglip.config
    with pytest.raises(ValueError, match=r"vision tower \(siglip_vision_model\) has 0 with a class token"):
        model.set_visual_plan(PLANS["class token"])


def visual_tokens(*images_of_samples: list[int], padding: int = 0):
    """Of samples whose images have one row of so many tokens, a text row before each."""
    rows = [
        [False] * padding + [visual for size in sizes for visual in (False, *[True] * size)]
        for sizes in images_of_samples
    ]
    length = max(map(len, rows))
    mask = torch.tensor([row + [False] * (length - len(row)) for row in rows])
    images = tuple(((1, size),) for sizes in images_of_samples for size in sizes)
    return split_streams(mask.shape, None, mask, images, 0, mask.device)[1]


def survivors(rank: Rank, fraction: float, tokens) -> list[list[tuple[int, int]]]:
    """(image, place) of each sample's survivors."""
    kept, _ = tokens.survivors(visual_ranking.scores_before_layers(rank, tokens, fraction, None), fraction)
    return [
        [(int(i), int(p)) for i, p, real in zip(*row, strict=True) if real]
        for row in zip(kept.image, kept.place, kept.valid, strict=True)
    ]


def test_uniform_survivors_are_evenly_spaced():
    tokens = visual_tokens([9, 4], [10])
    assert survivors(Rank(by="uniform"), 1 / 3, tokens) == [
        [(0, 1), (0, 4), (0, 7), (1, 1), (1, 3)],
        [(0, 1), (0, 3), (0, 6), (0, 8)],
    ]
    once, _ = tokens.survivors(visual_ranking.scores_before_layers(Rank(by="uniform"), tokens, 0.6, None), 0.6)
    assert survivors(Rank(by="uniform"), 0.3, once)[1] == [
        (0, 2),
        (0, 5),
        (0, 9),
    ]  # of places 0 2 4 5 7 9, those in the middle of thirds


def test_random_survivors_depend_on_seed_and_layout_alone():
    rank = Rank(by="random", seed=5)
    both = survivors(rank, 0.5, visual_tokens([16, 16], [16]))
    assert both[1:] == survivors(rank, 0.5, visual_tokens([16], padding=3)) == [both[0][:8]]
    first, second = ([place for image, place in both[0] if image == number] for number in (0, 1))
    assert len(first) == len(second) == 8 and first != second
    assert survivors(Rank(by="random", seed=6), 0.5, visual_tokens([16])) != both[1:]
    often = [
        place
        for seed in range(200)
        for _, place in survivors(Rank(by="random", seed=seed), 0.25, visual_tokens([16]))[0]
    ]
    assert all(25 < often.count(place) < 80 for place in range(16))  # 50 each, six standard deviations
