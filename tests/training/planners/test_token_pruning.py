"""Token schedules keep the tokens that a plain implementation of the paper keeps, and meet their budgets.

The planners are FastV, PyramidDrop, HiMAP and P-Sigmoid.
"""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from transformers import LlavaConfig

from modeling.layer_plan import Rank
from modeling.visual_plan import VisualPlan
from tests.families.family import as_batch, batch_of
from tests.families.llava import LLAVA
from tests.families.llava_next import LLAVA_NEXT
from tests.training.planners.plain_pruning import plain_survivors
from tests.training.planners.tiny_calibration import NUM_LAYERS, tiny_config
from training.measure.price import PlanPrice
from training.planners.fastv import FastvPlanner
from training.planners.file import FilePlanner
from training.planners.himap import HimapPlanner
from training.planners.p_sigmoid import PSigmoidPlanner
from training.planners.pre_pruning import PrePruningPlanner
from training.planners.pyramid_drop import PyramidDropPlanner
from training.planners.tools.token_schedule import TOKEN_SHARES
from training.recipe.file import RECIPES

CONFIG, LAYERS = tiny_config(), 6
PRICE = PlanPrice(CONFIG)


def fastv(config=CONFIG, **settings) -> VisualPlan:
    return FastvPlanner(planner="fastv", **settings).plan_of_config(config)


def pyramid_drop(config=CONFIG, **settings) -> VisualPlan:
    return PyramidDropPlanner(planner="pyramid_drop", **settings).plan_of_config(config)


def p_sigmoid(config=CONFIG, **settings) -> VisualPlan:
    return PSigmoidPlanner(planner="p_sigmoid", **settings).plan_of_config(config)


def himap(config=CONFIG, **settings) -> VisualPlan:
    return HimapPlanner(planner="himap", **settings).plan_of_config(config)


def pre_pruning(config=CONFIG, **settings) -> VisualPlan:
    return PrePruningPlanner(planner="pre_pruning", **settings).plan_of_config(config)


def tokens(plan: VisualPlan) -> list[float]:
    return [layer.tokens for layer in plan.layers]


# ---- what is kept ----

# For each rule: its plan, the share that each of 6 layers sees (counted from 0), and whose attention decides that.
RULES = {
    "fastv": (
        lambda config: fastv(config, layer=2, keep=0.3),
        lambda layer: 1.0 if layer < 2 else 0.3,
        lambda layer: "last",
    ),
    "pyramid_drop": (
        lambda config: pyramid_drop(config, depths=(1 / 6, 0.5, 0.8), keep=0.5),
        lambda layer: 1.0 if layer < 1 else 0.5 if layer < 3 else 0.25 if layer < 5 else 0.125,
        lambda layer: "last",
    ),
    "p_sigmoid": (
        lambda config: p_sigmoid(config, k=0.9, alpha=3.5),
        lambda layer: 1.0 if layer + 1 < 3 else 1 / (1 + math.exp(0.9 * (layer + 1 - 3.5))),
        lambda layer: "instruction",
    ),
    "himap": (
        lambda config: himap(config, layers=(2, 4), keep=(0.5, 0.125)),
        lambda layer: 1.0 if layer < 2 else 0.5 if layer < 4 else 0.125,
        lambda layer: "instruction" if layer == 2 else "image",
    ),
}


def deeper(family):
    """Returns the family with a model of six layers."""

    def config():
        made = family.config()
        made.text_config.num_hidden_layers = LAYERS
        return made

    return replace(family, config=config)


FAMILIES = [deeper(LLAVA[0]), deeper(LLAVA_NEXT[0])]  # one size of pictures, and several within a sample


def executed_survivors(model, batch) -> list[torch.Tensor]:
    """Returns [B, S] bool for each layer: the visual rows that it is given."""
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True, use_cache=False).hidden_states
    is_visual = batch["input_ids"] == model.config.image_token_id
    return [layer.abs().sum(-1).gt(0) & is_visual for layer in states[:LAYERS]]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("rule", RULES)
def test_survivors_are_those_of_a_plain_reading(family, rule):
    plan, share, ranked_by = RULES[rule]
    model, samples = family.sparse(), [sample for sample in family.samples(0) if "pixel_values" in sample]
    model.set_visual_plan(plan(model.config))
    batch = batch_of(samples, "left")
    executed = executed_survivors(model, batch)
    fewer = set()
    for number, sample in enumerate(samples):
        laid_out = family.layout(model, as_batch(sample))
        with torch.no_grad():
            expected = plain_survivors(model, laid_out, share, ranked_by)
            wrong = plain_survivors(
                model, laid_out, share, lambda layer: "last" if ranked_by(layer) == "instruction" else "instruction"
            )
        # Newlines between a picture's rows are image tokens to the prompt, and text to the plan.
        own = [layer[number, -len(laid_out.image) :] & (laid_out.image >= 0) for layer in executed]
        assert all(map(torch.equal, own, expected))
        assert not all(map(torch.equal, own, wrong)), "ranked from other rows, others survive"
        fewer.add(tuple(int(layer.sum()) for layer in own))
    assert len(fewer) == len(samples) and all(min(counts) > 0 for counts in fewer)


@pytest.mark.parametrize("rule", ["fastv", "pyramid_drop"])  # with several reading rows, rounding would break the ties
def test_ties_keep_the_earlier_token_of_each_picture(rule):
    plan, share, _ = RULES[rule]
    family = FAMILIES[1]
    model, sample = family.sparse(), family.samples(0)[-1]
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.q_proj.weight.zero_()
    model.set_visual_plan(plan(model.config))
    image = family.layout(model, as_batch(sample)).image
    sizes = [int((image == number).sum()) for number in range(2)]
    assert sizes[0] != sizes[1]
    for index, layer in enumerate(executed_survivors(model, as_batch(sample))):
        for number, size in enumerate(sizes):
            num_kept = math.ceil(round(share(index) * size, 6))
            assert layer[0][image == number].tolist() == [True] * num_kept + [False] * (size - num_kept)


# ---- budgets ----

SOLVED = {
    "fastv": (fastv, {}, 0.05),
    "fastv after one layer": (fastv, {"layer": 1}, 0.05),
    "pyramid_drop": (pyramid_drop, {}, 0.05),
    "himap": (himap, {"layers": (2, 4)}, 0.05),
    "p_sigmoid": (p_sigmoid, {"k": 0.5}, 0.02),
    "p_sigmoid, steep": (p_sigmoid, {"k": 1e3}, 1 / NUM_LAYERS),
}
"""Planner, settings, and the cost of the step to the next larger plan.

The step is one token in each layer that has lost some, or a whole layer.
"""


@pytest.mark.parametrize("rule", SOLVED)
def test_budgets_are_met_from_below_and_larger_ones_keep_no_less(rule):
    planner, settings, step = SOLVED[rule]
    before = [0.0] * NUM_LAYERS
    for share in (0.3, 0.35, 0.5, 0.75, 0.9, 1.0):
        plan = planner(budget={"visual_flops": share}, **settings)
        assert share - step <= PRICE(plan) <= share or tokens(plan) == [1.0] * NUM_LAYERS
        assert all(less <= more for less, more in zip(before, tokens(plan), strict=True))
        before = tokens(plan)
    assert before == [1.0] * NUM_LAYERS


@pytest.mark.parametrize("rule", SOLVED)
def test_an_unreachable_budget_is_refused_in_one_line(rule):
    planner, settings, _ = SOLVED[rule]
    most = 0.3 if "one layer" not in rule else 0.05
    with pytest.raises(
        ValueError, match=r"^plan.budget.visual_flops: got 0.01, allowed: 0\.\d+ or more, the cost of "
    ) as error:
        planner(budget={"visual_flops": 0.01}, **settings)
    allowed = float(str(error.value).split("allowed: ")[1].split(" or")[0])
    assert allowed < most
    assert planner(budget={"visual_flops": allowed + 1e-3}, **settings)


@pytest.mark.parametrize("planner", [fastv, pyramid_drop, pre_pruning])
def test_the_share_is_the_largest_that_fits(planner):
    for budget in (0.3, 0.5, 0.8):
        fitting = [plan for plan in (planner(keep=share) for share in TOKEN_SHARES) if PRICE(plan) <= budget]
        assert planner(budget={"visual_flops": budget}) == fitting[-1] != fitting[0]


def test_alpha_is_the_largest_that_fits():
    for budget in (0.3, 0.5, 0.8):
        costs = [PRICE(p_sigmoid(k=0.5, alpha=step / 50)) for step in range(-1500, 2000, 7)]
        assert costs == sorted(costs)
        found = PRICE(p_sigmoid(k=0.5, budget={"visual_flops": budget}))
        assert found >= max(cost for cost in costs if cost <= budget)


def test_pre_pruning_carries_one_share_ranked_before_the_first_layer():
    plan = pre_pruning(keep=0.25)
    assert tokens(plan) == [0.25] * NUM_LAYERS and plan.layers[0].rank == Rank(by="cls_attention")
    assert pre_pruning(keep=0.25, tower_layers=7).layers[0].rank == Rank(by="cls_attention", tower_layers=7)
    assert pre_pruning(keep=0.25, by="uniform", seed=3).layers[0].rank == Rank(by="uniform")
    assert pre_pruning(keep=0.25, by="random", seed=3).layers[0].rank == Rank(by="random", seed=3)
    for budget in (0.12, 0.3, 0.5):
        assert budget - 0.04 < PRICE(pre_pruning(budget={"visual_flops": budget})) <= budget


# ---- from another model ----


def test_a_schedule_goes_to_another_depth_by_relative_depth(tmp_path):
    path = tmp_path / "plan.json"

    def carried(plan, num_layers, **settings):
        plan.save(path)
        config = LlavaConfig(text_config={"model_type": "llama", "num_hidden_layers": num_layers})
        return FilePlanner(planner="file", path=path, relative_depth=True).plan_of_config(config)

    schedule = fastv(shape("llava-1.5-7b"), keep=0.5, layer=8)
    assert (
        tokens(carried(schedule, 24)) == [1.0] * 6 + [0.5] * 18
        and tokens(carried(schedule, 40)) == [1.0] * 10 + [0.5] * 30
    )
    assert carried(schedule, 24).layers[6].rank == schedule.layers[8].rank and carried(schedule, 32) == schedule
    frozen = VisualPlan.dense(4).replace(2, attend=False, ffn=0, read=False)
    assert carried(frozen, 8) == VisualPlan.dense(8).replace(4, attend=False, ffn=0, read=False).replace(
        5, attend=False, ffn=0, read=False
    )
    for units in ({"heads": (1,)}, {"heads": 4}, {"ffn": 7}):
        with pytest.raises(
            ValueError, match=f"plan.json: layer 3: got {next(iter(units))}, allowed with relative_depth"
        ):
            carried(VisualPlan.dense(4).replace(3, **units), 8)
    VisualPlan.dense(4).save(path)
    with pytest.raises(ValueError, match="got 4 layers, the model has 8"):
        FilePlanner(planner="file", path=path).plan_of_config(CONFIG)


# ---- as published ----


def shape(name: str) -> LlavaConfig:
    return LlavaConfig.from_json_file(RECIPES / "shapes" / f"{name}.json")


def test_published_schedules():
    config = shape("llava-1.5-7b")
    assert tokens(fastv(config, keep=0.5)) == [1.0] * 2 + [0.5] * 30
    assert tokens(pyramid_drop(config, keep=0.5)) == [1.0] * 8 + [0.5] * 8 + [0.25] * 8 + [0.125] * 8
    assert sum(tokens(pyramid_drop(config, keep=0.5))) / 32 == pytest.approx(0.469, abs=5e-4)
    assert tokens(himap(config, keep=(0.5, 0.125))) == [1.0] * 2 + [0.5] * 6 + [0.125] * 24
    published = PlanPrice(config)(himap(config, keep=(0.5, 0.125)))
    assert published == pytest.approx(0.246, abs=0.005)
    assert himap(config, budget={"visual_flops": published}) == himap(config, keep=(0.5, 0.125))
    # The mean share of tokens that the published TFLOPs come to, at the published k.
    published = (
        (0.3558, 2.9, 0.13),
        (0.4808, 6.0, 0.18),
        (0.4568, 9.1, 0.27),
        (0.7478, 12.8, 0.38),
        (0.933, 16.5, 0.50),
    )
    for k, alpha, mean in published:
        assert sum(tokens(p_sigmoid(config, k=k, alpha=alpha))) / 32 == pytest.approx(mean, abs=0.005)


def test_a_share_of_next_to_nothing_withdraws_the_tokens():
    steep = tokens(p_sigmoid(shape("llava-1.5-13b"), k=0.933, alpha=16.5))
    assert steep[-1] == 0.0 and min(share for share in steep if share) >= 1e-6
    assert tokens(pyramid_drop(keep=1 / 1024))[-2:] == [0.0, 0.0]
    assert tokens(p_sigmoid(k=1e6, alpha=4.5)) == [1.0] * 4 + [0.0] * 4


def test_settings_that_contradict_or_do_not_fit_are_refused():
    budget = {"visual_flops": 0.5}
    wrong_settings = {
        fastv: [
            {},
            {"keep": 0.5, "budget": budget},
            {"keep": 0.5, "layer": 0},
            {"keep": 1.5},
        ],
        pyramid_drop: [
            {},
            {"keep": 0.5, "budget": budget},
            {"keep": 0.5, "depths": []},
            {"keep": 0.5, "depths": [0.0]},
        ],
        p_sigmoid: [
            {},
            {"k": 0.5},
            {"alpha": 3},
            {"k": 0, "alpha": 3},
            {"k": math.inf, "alpha": 3},
            {"k": 1, "alpha": 3, "budget": budget},
        ],
        pre_pruning: [
            {},
            {"keep": 0.5, "by": "text_attention"},
            {"keep": 0.5, "by": "uniform", "tower_layers": 2},
        ],
        himap: [
            {},
            {"keep": (0.1, 0.5)},
            {"keep": (0.5, 0.1), "layers": (4, 4)},
            {"keep": [0.5]},
        ],
    }
    for planner, refused in wrong_settings.items():
        for settings in refused:
            with pytest.raises(ValidationError):
                planner(**settings)
    with pytest.raises(ValueError, match=r"plan.layer: got 8, allowed: 1 to 7, as the model has 8 layers"):
        fastv(keep=0.5, layer=8)
    with pytest.raises(ValueError, match=r"plan.layers: got 8, allowed: 1 to 7, as the model has 8 layers"):
        himap(keep=(0.5, 0.125))
    with pytest.raises(ValueError, match=r"plan.depths: got 0.9, allowed: up to 0.875, as the model has 8 layers"):
        pyramid_drop(keep=0.5, depths=(0.5, 0.9))
