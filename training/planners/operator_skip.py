"""Operator-level skipping (arXiv 2606.31903): attention and FFN of a layer are two operators, skipped one by one.

All visual tokens stay, and text of every layer reads them. An operator's worth is what the answers see of it: the
answer KL that skipping it alone causes. Operators are skipped in the order of that KL for each part of the price saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from modeling.visual_plan import VisualPlan
from training.planners.planner import BudgetPlanner
from training.planners.tools.moves import FREEZE, frozen_plan
from training.progress import Progress

if TYPE_CHECKING:
    from training.planners.tools.search import Search


class OperatorSkipPlanner(BudgetPlanner):
    """Operator-level skipping (arXiv 2606.31903): skips attention or FFN of layers until the budget is met."""

    planner: Literal["operator_skip"]

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan with the fewest skipped operators that meets the budget.

        Raises:
            UserError: the plan exceeds the budget with every operator skipped, or no calibration sample with an image
                has an answer.
        """
        num_layers, price = search.config.text_config.num_hidden_layers, search.price_within(self.budget)
        dense = VisualPlan.dense(num_layers)
        self.budget.refuse_below(price(frozen_plan(num_layers)), "layers that skip attention and FFN and are read")
        worth = {}
        for operator in Progress(
            [(layer, field) for layer in range(num_layers) for field in FREEZE], desc="operator plan", unit="operator"
        ):
            layer, field = operator
            without = dense.replace(layer, **{field: FREEZE[field]})
            saved = price(dense) - price(without)
            if saved > 0:  # what costs nothing need not be skipped
                worth[operator] = search.answer_kl(without) / saved
        plan = dense
        for layer, field in sorted(worth, key=worth.__getitem__):
            if price(plan) <= self.budget.share:
                break
            plan = plan.replace(layer, **{field: FREEZE[field]})
        return plan
