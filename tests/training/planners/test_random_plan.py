"""The random planner meets its budget closely and depends on nothing but its seed."""

import pytest

from tests.training.planners.tiny_calibration import NUM_LAYERS, NUM_NEURONS, NUM_UNITS, tiny_calibration, tiny_config
from training.planners.random_plan import RandomSettings, plan_random
from training.planners.tools.budget import PlanPrice

CONFIG, CALIBRATION = tiny_config(), tiny_calibration()


def settings(budget: float, seed: int = 0) -> RandomSettings:
    return RandomSettings(planner="random", budget={"visual_flops": budget}, seed=seed)


@pytest.mark.parametrize("budget", [0.0, 0.04, 0.12, 0.5, 1.0])
def test_meets_the_budget(budget):
    for seed in range(5):
        plan = plan_random(CONFIG, CALIBRATION, settings(budget, seed))
        plan.check(NUM_LAYERS, NUM_UNITS, NUM_NEURONS)
        assert budget - 0.03 <= PlanPrice(CONFIG)(plan) <= budget or budget == 1.0


def test_the_seed_decides():
    plans = {plan_random(CONFIG, CALIBRATION, settings(0.12, seed)) for seed in range(4)}
    assert len(plans) == 4
    assert plan_random(CONFIG, CALIBRATION, settings(0.12, seed=2)) in plans
