"""Random planner: draws moves at random until the budget is met. It is a baseline that other planners must beat."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

from data.sources.settings import Seed
from modeling.visual_plan import VisualPlan
from training.planners.planner import BudgetPlanner
from training.planners.tools.moves import Moves

if TYPE_CHECKING:
    from training.planners.tools.search import Search


class RandomPlanner(BudgetPlanner):
    """Draws moves at random from the dense plan down to the budget. It is a baseline."""

    reads_statistics = True
    reads_unit_kl = True
    planner: Literal["random"]
    seed: Seed
    """Seed of the drawn moves."""

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan after random moves down to the budget.

        No move goes below the budget while another stays above it. The last move is the one that ends nearest below it.

        Raises:
            UserError: even text alone exceeds the budget.
        """
        generator = random.Random(self.seed)
        moves, price = Moves(search.config, search.calibration), search.price_within(self.budget)
        plan = moves.dense
        while price(plan) > self.budget.share:
            cheaper = [after for _, after in moves.closings(plan) if price(after) < price(plan)]
            above = [after for after in cheaper if price(after) > self.budget.share]
            plan = generator.choice(above) if above else max(cheaper, key=price)
        return moves.with_units(plan)
