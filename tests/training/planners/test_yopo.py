"""YOPO meets budgets in the released pattern, and explicit shares and thresholds do what they say."""

import pytest
import torch
from pydantic import ValidationError

from modeling.layer_plan import LayerPlan
from tests.training.planners.tiny_calibration import (
    NUM_LAYERS,
    NUM_NEURONS,
    NUM_SAMPLES,
    NUM_UNITS,
    tiny_calibration,
    tiny_config,
    tiny_search,
)
from training.measure.calibration import Calibration
from training.measure.price import PlanPrice
from training.planners.yopo import YopoPlanner

CONFIG, CALIBRATION = tiny_config(), tiny_calibration()
PRICE = PlanPrice(CONFIG)
EXPLICIT = {"planner": "yopo", "withdraw_from": 5, "ffn_kept": 0.5, "radius": 1}


@pytest.mark.parametrize("budget", [0.0, 0.01, 0.04, 0.12, 0.25, 0.5, 0.9])
def test_a_budget_is_met_closely(budget):
    plan = YopoPlanner(planner="yopo", budget={"visual_flops": budget}).find(tiny_search(CONFIG, CALIBRATION))
    plan.check(NUM_LAYERS, NUM_UNITS, NUM_NEURONS)
    assert PRICE(plan) <= budget
    # Depth goes in whole layers: with 8 of them, a small budget may be left half unspent.
    assert PRICE(plan) >= max(budget / 2, budget - 0.02)


def test_a_budget_keeps_the_released_pattern():
    plan = YopoPlanner(planner="yopo", budget={"visual_flops": 0.25}).find(tiny_search(CONFIG, CALIBRATION))
    withdrawn = [layer.tokens for layer in plan.layers].index(0.0)
    assert NUM_LAYERS // 2 - 1 <= withdrawn <= NUM_LAYERS // 2 + 1
    assert plan.layers[0].heads is None and plan.layers[1].heads is None
    for layer in plan.layers[:withdrawn]:
        assert NUM_NEURONS // 2 <= len(layer.ffn) < NUM_NEURONS
        assert (layer.radius, layer.bidirectional) == (2, True)
    # Layer 0's first half of the neurons is what the released code keeps; here importance decides.
    strongest = CALIBRATION.neuron_importance[0].topk(len(plan.layers[0].ffn)).indices.tolist()
    assert plan.layers[0].ffn == tuple(sorted(strongest)) != tuple(range(len(strongest)))


def test_heads_kept_is_a_share_over_all_layers():
    plan = YopoPlanner(**EXPLICIT, heads_kept=0.5).find(tiny_search(CONFIG, CALIBRATION))
    assert plan.layers[5:] == (LayerPlan(tokens=0.0),) * (NUM_LAYERS - 5)
    active = CALIBRATION.activity.mean(0)[2:5].flatten().topk(6).indices.tolist()
    for layer in range(2, 5):
        expected = tuple(unit for unit in range(NUM_UNITS) if (layer - 2) * NUM_UNITS + unit in active)
        heads = plan.layers[layer].heads
        assert (tuple(range(NUM_UNITS)) if heads is None else heads or ()) == expected


def test_threshold_by_votes():
    activity = torch.zeros(NUM_SAMPLES, NUM_LAYERS, NUM_UNITS)
    activity[:3, 3, 0] = 0.3  # half of the samples vote for it
    activity[:2, 3, 1] = 0.3  # a third
    activity[:, 3, 2] = 0.2  # all stand at the threshold, none above it
    calibration = Calibration(activity, CALIBRATION.neuron_importance, CALIBRATION.neighborhood, CALIBRATION.unit_kl)
    plan = YopoPlanner(**EXPLICIT, activity_threshold=0.2).find(tiny_search(CONFIG, calibration))
    assert [layer.heads for layer in plan.layers[:5]] == [None, None, 0, (0,), 0]
    generous = YopoPlanner(**EXPLICIT, activity_threshold=0.2, votes=0.3).find(tiny_search(CONFIG, calibration))
    assert generous.layers[3].heads == (0, 1)


def test_settings_that_contradict_are_refused():
    for settings in (
        {"planner": "yopo"},
        EXPLICIT,
        {**EXPLICIT, "heads_kept": 0.5, "activity_threshold": 0.1},
        {**EXPLICIT, "heads_kept": 0.5, "budget": {"visual_flops": 0.5}},
        {**EXPLICIT, "heads_kept": 1.5},
    ):
        with pytest.raises(ValidationError):
            YopoPlanner(**settings)
    with pytest.raises(ValueError, match="withdraw_from: got 9, the model has 8 layers"):
        YopoPlanner(**{**EXPLICIT, "withdraw_from": 9}, heads_kept=0.5).find(tiny_search(CONFIG, CALIBRATION))
