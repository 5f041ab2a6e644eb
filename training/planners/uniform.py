"""Uniform planner: every layer serves visual tokens with the same share of its heads and neurons.

It is a baseline: a planner that knows nothing about differences between layers can do this much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from modeling.layer_plan import LayerPlan
from modeling.visual_plan import VisualPlan
from training.planners.planner import BudgetPlanner
from training.planners.tools.moves import Moves

if TYPE_CHECKING:
    from training.planners.tools.search import Search

SHARE_STEPS = 256


class UniformPlanner(BudgetPlanner):
    """Serves visual tokens with the same share of heads and FFN neurons in all layers.

    It is the largest share that fits the budget. Calibration decides which heads and neurons of a layer stay.
    """

    reads_statistics = True
    reads_unit_kl = True
    planner: Literal["uniform"]

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan in which each layer keeps its units of largest KL and its neurons of largest importance.

        Raises:
            UserError: even one unit in every layer exceeds the budget.
        """
        text = search.config.text_config
        moves, price = Moves(search.config, search.calibration), search.price_within(self.budget)

        def plan_of(share: float) -> VisualPlan:
            units, neurons = round(text.num_key_value_heads * share), round(text.intermediate_size * share)
            return moves.with_units(VisualPlan(layers=(LayerPlan(heads=units, ffn=neurons),) * text.num_hidden_layers))

        steps = (step / SHARE_STEPS for step in range(SHARE_STEPS, 0, -1))
        shares = [share for share in steps if round(text.num_key_value_heads * share) > 0]
        self.budget.refuse_below(price(plan_of(shares[-1])), "the narrowest uniform plan")
        return next(plan for plan in map(plan_of, shares) if price(plan) <= self.budget.share)
