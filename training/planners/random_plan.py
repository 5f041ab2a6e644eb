"""Random planner: moves drawn blindly until the budget is met. What a planner must beat."""

import random
from typing import Literal

from pydantic import Field
from transformers import PreTrainedConfig

from modeling.visual_plan import VisualPlan
from training.measure.calibration import Calibration
from training.planners.tools.budget import Budget, PlanPrice
from training.planners.tools.moves import Moves
from training.schema import Strict


class RandomSettings(Strict):
    """Random moves down to the budget."""

    planner: Literal["random"]
    budget: Budget
    seed: int = Field(ge=0)


def plan_random(config: PreTrainedConfig, calibration: Calibration, settings: RandomSettings) -> VisualPlan:
    """Moves in random order, none past the budget while another stays above it; then the one that ends nearest below."""
    generator = random.Random(settings.seed)
    moves, price = Moves(config, calibration), PlanPrice(config)
    plan = moves.dense
    while price(plan) > settings.budget.visual_flops:
        cheaper = [to for _, to in moves.closings(plan) if price(to) < price(plan)]
        above = [to for to in cheaper if price(to) > settings.budget.visual_flops]
        plan = generator.choice(above) if above else max(cheaper, key=price)
    return moves.listed(plan)
