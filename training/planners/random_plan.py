"""Random planner: moves drawn blindly until the budget is met. What a planner must beat."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from modeling.visual_plan import VisualPlan
from training.planners.planner import BudgetPlanner
from training.planners.tools.moves import Moves

if TYPE_CHECKING:
    from training.planners.tools.search import Search


class RandomPlanner(BudgetPlanner):
    """Random moves down to the budget."""

    reads_statistics = True
    planner: Literal["random"]
    seed: int = Field(ge=0)

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan after moves in random order: none passes the budget while another stays above it, then the one
        that ends nearest below."""
        generator = random.Random(self.seed)
        moves, price = Moves(search.config, search.calibration), search.price_within(self.budget)
        plan = moves.dense
        while price(plan) > self.budget.share:
            cheaper = [to for _, to in moves.closings(plan) if price(to) < price(plan)]
            above = [to for to in cheaper if price(to) > self.budget.share]
            plan = generator.choice(above) if above else max(cheaper, key=price)
        return moves.with_units(plan)
