"""The random planner meets its budget closely and depends on nothing but its seed."""

import pytest

from tests.training.planners.tiny_calibration import (
    NUM_LAYERS,
    NUM_NEURONS,
    NUM_UNITS,
    tiny_calibration,
    tiny_config,
    tiny_search,
)
from training.measure.price import PlanPrice
from training.planners.random_plan import RandomPlanner

CONFIG, CALIBRATION = tiny_config(), tiny_calibration()


def settings(budget: float, seed: int = 0) -> RandomPlanner:
    return RandomPlanner(planner="random", budget={"visual_flops": budget}, seed=seed)


@pytest.mark.parametrize("budget", [0.0, 0.04, 0.12, 0.5, 1.0])
def test_meets_the_budget(budget):
    for seed in range(5):
        plan = settings(budget, seed).find(tiny_search(CONFIG, CALIBRATION))
        plan.check(NUM_LAYERS, NUM_UNITS, NUM_NEURONS)
        assert budget - 0.03 <= PlanPrice(CONFIG)(plan) <= budget or budget == 1.0


def test_the_seed_decides():
    plans = {settings(0.12, seed).find(tiny_search(CONFIG, CALIBRATION)) for seed in range(4)}
    assert len(plans) == 4
    assert settings(0.12, seed=2).find(tiny_search(CONFIG, CALIBRATION)) in plans
