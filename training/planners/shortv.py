"""ShortV (arXiv 2504.00502): whole layers are frozen for visual tokens, those first that matter least to the answers.

A frozen layer does not update visual tokens, but its text still reads them. Layers are frozen in the order of the
answer KL that freezing each of them alone causes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from modeling.visual_plan import VisualPlan
from training.planners.planner import BudgetPlanner
from training.planners.tools.moves import FREEZE, frozen_plan
from training.progress import Progress

if TYPE_CHECKING:
    from training.planners.tools.search import Search


class ShortvPlanner(BudgetPlanner):
    """ShortV (arXiv 2504.00502): freezes whole layers for visual tokens until the budget is met."""

    planner: Literal["shortv"]

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan with the fewest frozen layers that meets the budget.

        Raises:
            UserError: the plan exceeds the budget with every layer frozen, or no calibration sample with an image has
                an answer.
        """
        num_layers, price = search.config.text_config.num_hidden_layers, search.price_within(self.budget)
        plan = VisualPlan.dense(num_layers)
        self.budget.refuse_below(price(frozen_plan(num_layers)), "frozen layers that are read")
        order = sorted(
            Progress(range(num_layers), desc="shortv plan", unit="layer"),
            key=lambda layer: search.answer_kl(plan.replace(layer, **FREEZE)),
        )
        for layer in order:
            if price(plan) <= self.budget.share:
                break
            plan = plan.replace(layer, **FREEZE)
        return plan
