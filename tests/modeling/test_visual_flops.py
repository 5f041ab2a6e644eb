"""The FLOPs counter: published anchors, hand counts, and what FlopCounterMode sees executed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from modeling.configuration_sparse_llava import SparseLlavaConfig, image_grids, vision_macs
from modeling.layer_plan import RANKING_ROWS, RANKINGS, LayerPlan, Rank, num_served
from modeling.modeling_sparse_llava import SparseLlavaForConditionalGeneration
from modeling.neighbor_attention import tile_slots, tiles_pay
from modeling.visual_flops import (
    DecoderShape,
    dense_cost,
    dense_kv_bytes,
    kv_bytes,
    model_fraction,
    plan_cost,
    visual_fraction,
    visual_fraction_by_layer,
)
from modeling.visual_plan import VisualPlan
from tests.families.llava import DINOV2
from tests.modeling.random_plans import random_plan

SHAPES = Path(__file__).parents[2] / "recipes" / "shapes"
SMALL = DecoderShape(hidden_size=32, intermediate_size=80, num_layers=4, num_heads=8, num_kv_heads=4, head_dim=6)
GRIDS = [((4, 4),), ((2, 3),)]


def shape_config(name):
    return LlavaConfig.from_dict(json.loads((SHAPES / name).read_text()))


@pytest.mark.parametrize(
    "name, macs_visual, flops_visual, flops_prefill, flops_total",
    [
        ("llava-1.5-7b.json", 3.82, 7.63, 8.50, 8.89),
        ("llava-1.5-13b.json", None, 14.89, 16.58, None),
    ],
)
def test_published_anchors(name, macs_visual, flops_visual, flops_prefill, flops_total):
    """The four conventions as printed by FastV, YOPO, ShortV and DiffPrune, in units of 1e12."""
    config = shape_config(name)
    images = (image_grids(config),)
    assert images == (((24, 24),),)
    cost = dense_cost(DecoderShape.from_config(config.text_config), images, 64, vision_macs=vision_macs(config, images))
    found = (cost.macs_visual, cost.flops_visual, cost.flops_prefill, cost.flops_total)
    for value, printed in zip(found, (macs_visual, flops_visual, flops_prefill, flops_total), strict=True):
        assert printed is None or round(value / 1e12, 2) == printed


def test_shapes_are_the_true_models():
    for name, billions in (("llava-1.5-7b.json", 7.06), ("llava-1.5-13b.json", 13.35)):
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(shape_config(name))
        assert round(sum(p.numel() for p in model.parameters()) / 1e9, 2) == billions


def test_vision_tower_runs_to_the_layer_that_is_read():
    config = shape_config("llava-1.5-7b.json")
    macs = {}
    for layer in (-2, 5, 23, 4):
        config.vision_feature_layer = layer
        macs[layer] = vision_macs(config, (image_grids(config),))
    assert macs[-2] == macs[23]
    assert macs[23] - macs[5] == 18 * (macs[5] - macs[4])
    config.vision_feature_layer = [3, -1]
    both = vision_macs(config, (image_grids(config),))
    config.vision_feature_layer = -1
    assert both - vision_macs(config, (image_grids(config),)) == 24 * 24 * 1024 * 4096, (
        "the projector takes both layers"
    )
    assert vision_macs(config, (image_grids(config),) * 3) == 3 * vision_macs(config, (image_grids(config),))


@pytest.mark.parametrize("gated", [False, True])
def test_a_dinov2_costs_what_it_executes(gated):
    """Its FFN has two matrices or three, by the config, and its neurons stand there as a ratio."""
    config = DINOV2.config()
    config.vision_config.use_swiglu_ffn, config.vision_config.mlp_ratio = gated, 4
    size = config.vision_config.image_size
    model = SparseLlavaForConditionalGeneration(SparseLlavaConfig(**config.to_dict())).model
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.get_image_features(torch.zeros(1, 3, size, size))
    assert 2 * vision_macs(config, (image_grids(config),)) == counter.get_total_flops()
    config.vision_config.use_swiglu_ffn = not gated
    assert 2 * vision_macs(config, (image_grids(config),)) != counter.get_total_flops()


def test_other_vision_towers_are_refused():
    config = shape_config("llava-1.5-7b.json")
    config.vision_config.model_type = "pixtral"
    with pytest.raises(ValueError, match="vision tower: got 'pixtral', allowed: clip_vision_model"):
        vision_macs(config, (image_grids(config),))


def test_plan_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="got 3 layers, the model has 4"):
        plan_cost(VisualPlan.dense(3), SMALL, GRIDS)


def test_dense_plan_leaves_out_dead_work_only():
    """The dense plan differs from the stock model by the last layer's visual updates, which nothing reads."""
    d, m, v, t = 32, 80, 22, 10
    dead = v * (2 * d * 48 + 3 * d * m) + 2 * v * v * 48
    dense, stock = plan_cost(VisualPlan.dense(4), SMALL, GRIDS, t), dense_cost(SMALL, GRIDS, t)
    assert stock.macs_visual - dense.macs_visual == dead
    assert stock.flops_prefill - dense.flops_prefill == 2 * (dead + 2 * v * t * 48)
    assert stock.flops_total is None


def test_one_layer_by_hand():
    """Half the tokens, one unit of four, 20 neurons, tiles: every term of a middle layer."""
    grids, t, before = [((24, 20),)], 10, 3
    layers = (
        LayerPlan(),
        LayerPlan(tokens=0.9, rank=Rank(rows="instruction"), heads=1, ffn=20, radius=1),
        LayerPlan(tokens=0.9, attend=False, ffn=0, heads=(1, 3)),
        LayerPlan(tokens=0.0),
    )
    d, hd, n, v = 32, 6, 480, 432
    query_slots, pair_slots = tile_slots(grids[0], 1)
    stock = n * (2 * d * 24 + 2 * d * 48 + 3 * d * 80) + 2 * n**2 * 48
    middle = v * (2 * d * hd + 2 * d * 2 * hd + 3 * d * 20) + 2 * pair_slots * 2 * hd
    blind_end = v * 2 * d * 2 * hd
    cost = plan_cost(VisualPlan(layers), SMALL, grids, t, text_before=before)
    assert cost.macs_visual == stock + middle + blind_end
    text = 4 * (t * (2 * d * 48 + 2 * d * 24 + 3 * d * 80) + 2 * t * t * 48)
    reads = 2 * t * (n * 48 + v * 2 * hd + v * 4 * hd)
    to_text = 2 * (t * n * 48 + before * query_slots * 2 * hd)
    ranking = (t - before) * (n + t) * 48
    assert cost.flops_prefill == 2 * (cost.macs_visual + text + reads + to_text + ranking)
    by_images = VisualPlan((layers[0], replace(layers[1], rank=Rank(by="image_attention")), *layers[2:]))
    ranking = n * (n + t) * 48
    assert plan_cost(by_images, SMALL, grids, t, before).flops_prefill == 2 * (
        cost.macs_visual + text + reads + to_text + ranking
    )
    by_place = VisualPlan((layers[0], replace(layers[1], rank=Rank(by="uniform")), *layers[2:]))
    assert plan_cost(by_place, SMALL, grids, t, before).flops_prefill == 2 * (cost.macs_visual + text + reads + to_text)


def test_fractions_and_bytes():
    plan = VisualPlan((LayerPlan(attend=False, ffn=0, heads=2), *[LayerPlan(tokens=0.0)] * 3))
    grids, v = [((4, 5),)], 20
    stock = dense_cost(SMALL, grids)
    assert visual_fraction(plan, SMALL, grids) == v * 2 * 32 * 12 * 2 / stock.flops_visual
    by_layer = visual_fraction_by_layer(plan, SMALL, grids)
    assert by_layer[1:] == (0, 0, 0) and sum(by_layer) / 4 == pytest.approx(visual_fraction(plan, SMALL, grids))
    assert visual_fraction(plan, SMALL, grids) < model_fraction(plan, SMALL, grids, 64) < 1
    assert kv_bytes(plan, SMALL, grids, 7, 4) == 2 * 4 * 6 * (4 * 7 * 4 + v * 2)
    assert dense_kv_bytes(SMALL, grids, 7, 4) == 2 * 4 * 6 * 4 * (7 + v) * 4


def test_every_saving_is_priced():
    """Each single change to a middle layer lowers the cost; what changes nothing executed does not."""
    dense = VisualPlan.dense(4)
    grids = [((24, 20),)]
    full = plan_cost(dense, SMALL, grids).flops_prefill
    for change in ({"attend": False}, {"read": False}, {"heads": 2}, {"ffn": 40}, {"radius": 1}, {"tokens": 0.5}):
        assert plan_cost(dense.replace(1, **change), SMALL, grids).flops_prefill < full, change
    assert plan_cost(dense.replace(3, ffn=0), SMALL, grids).flops_prefill == full
    assert plan_cost(dense.replace(1, radius=40), SMALL, grids).flops_prefill == full


SIDE, IMAGE_TOKEN, TEXT_BEFORE, TEXT_TOKENS = 18, 49, 5, 14


@pytest.fixture(scope="module")
def model():
    text = LlamaConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=2 * SIDE,
        patch_size=2,
    )
    config = SparseLlavaConfig(
        text_config=text, vision_config=vision, image_token_index=IMAGE_TOKEN, vision_feature_layer=-1
    )
    return SparseLlavaForConditionalGeneration(config).eval()


def execute(model, plan, num_images):
    """FLOPs that FlopCounterMode sees, by module, and the cache; some of the text stands before the images."""
    generator = torch.Generator().manual_seed(0)
    before, after = (
        torch.randint(0, 48, (count,), generator=generator) for count in (TEXT_BEFORE, TEXT_TOKENS - TEXT_BEFORE)
    )
    images = torch.full((num_images * SIDE**2,), IMAGE_TOKEN)
    pixels = torch.randn(num_images, 3, 2 * SIDE, 2 * SIDE, generator=generator)
    # The fused attention of a CPU is invisible to the counter; the plain one is made of products that it counts.
    with model.use_plan(plan), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        outputs = model(input_ids=torch.cat([before, images, after])[None], pixel_values=pixels, use_cache=True)
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    return flops, outputs.past_key_values


RANKED = VisualPlan(
    (
        LayerPlan(tokens=0.9, rank=Rank(by="cls_attention"), heads=3),
        LayerPlan(tokens=0.8, rank=Rank(by="image_attention"), read=False, radius=1),
        LayerPlan(tokens=0.7, rank=Rank(by="image_attention"), heads=(1, 2)),
        LayerPlan(tokens=0.5, rank=Rank()),
        LayerPlan(tokens=0.3, rank=Rank(rows="instruction")),
        LayerPlan(tokens=0.2, rank=Rank(by="random")),
    )
)
PLANS = {
    "dense": VisualPlan.dense(6),
    "ranked": RANKED,
    **{f"random {seed}": random_plan(seed, 6, 4, 160) for seed in range(8)},
}


@pytest.mark.parametrize("number, plan", list(enumerate(PLANS.values())), ids=PLANS.keys())
def test_claimed_is_executed(model, number, plan):
    grids = (image_grids(model.config),) * (1 + number % 2)
    flops, cache = execute(model, plan, len(grids))
    decoder, vision = DecoderShape.from_config(model.config.text_config), vision_macs(model.config, grids)
    claimed = plan_cost(plan, decoder, grids, TEXT_TOKENS, TEXT_BEFORE, vision)
    name = type(model).__name__
    executed = flops[f"{name}.model.language_model"]
    assert claimed.flops_prefill == pytest.approx(executed, rel=0.001)
    assert claimed.flops_total == pytest.approx(flops[f"{name}.model"], rel=0.001)
    assert kv_bytes(plan, decoder, grids, TEXT_TOKENS, 4) == cache.num_bytes()

    # A counter told of another plan must be caught: one layer's FFN, opened or closed, is far beyond the margin.
    other = plan.replace(0, ffn=0 if num_served(plan.layers[0].ffn, 160) > 80 else None)
    if other.live(4, 160) != plan.live(4, 160):
        assert plan_cost(other, decoder, grids, TEXT_TOKENS, TEXT_BEFORE).flops_prefill != pytest.approx(
            executed, rel=0.02
        )


def test_random_plans_cover_tiles_and_rankings():
    """What the comparison above claims to compare does occur in its plans."""
    live = [layer for plan in PLANS.values() for layer in plan.live(4, 160)]
    assert any(layer.radius == 1 and layer.tokens == 1 for layer in live)
    assert {layer.rank.by for layer in live if layer.keep} == set(RANKINGS)
    assert {layer.rank.rows for layer in live if layer.keep and layer.rank.by == "text_attention"} == set(RANKING_ROWS)
    assert any(not layer.read and layer.attend for layer in live)
    assert tiles_pay(SIDE**2, tile_slots([(SIDE, SIDE)], 1)[1])
