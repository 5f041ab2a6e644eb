"""Uniform narrowing: every layer serves visual tokens with the same share of its heads and neurons. What a planner that knows
nothing of layers can do."""

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
    """The largest share of heads and FFN neurons, the same in all layers, that fits the budget."""

    reads_statistics = True
    planner: Literal["uniform"]

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan in which the units of largest KL and the neurons of largest importance stay in each layer.

        Raises:
            UserError: not even one unit in every layer fits the budget.
        """
        text = search.config.text_config
        moves, price = Moves(search.config, search.calibration), search.price_within(self.budget)

        def plan(share: float) -> VisualPlan:
            units, neurons = round(text.num_key_value_heads * share), round(text.intermediate_size * share)
            return moves.with_units(VisualPlan(layers=(LayerPlan(heads=units, ffn=neurons),) * text.num_hidden_layers))

        steps = (step / SHARE_STEPS for step in range(SHARE_STEPS, 0, -1))
        shares = [share for share in steps if round(text.num_key_value_heads * share) > 0]
        self.budget.refuse_below(price(plan(shares[-1])), "the narrowest uniform plan")
        return next(found for found in map(plan, shares) if price(found) <= self.budget.share)
