"""ShortV's rule (arXiv 2504.00502): layers are frozen for visual tokens in the order of what freezing each alone
costs, the KL of the answers from the dense model's; frozen layers are still read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tqdm.auto import tqdm

from modeling.visual_plan import VisualPlan
from training.planners.planner import BudgetPlanner
from training.planners.tools.moves import FREEZE

if TYPE_CHECKING:
    from training.planners.tools.search import Search


class ShortvPlanner(BudgetPlanner):
    """Whole layers frozen until the budget is met."""

    planner: Literal["shortv"]

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan with the fewest layers frozen that meets the budget.

        Raises:
            UserError: the budget is below what reading costs with every layer frozen.
        """
        num_layers, price = search.config.text_config.num_hidden_layers, search.price_within(self.budget)
        plan = VisualPlan.dense(num_layers)
        all_frozen = plan
        for layer in range(num_layers):
            all_frozen = all_frozen.replace(layer, **FREEZE)
        self.budget.refuse_below(price(all_frozen), "frozen layers that are read")
        order = sorted(
            tqdm(range(num_layers), desc="shortv plan", unit="layer"),
            key=lambda layer: search.answer_kl(plan.replace(layer, **FREEZE)),
        )
        for layer in order:
            if price(plan) <= self.budget.share:
                break
            plan = plan.replace(layer, **FREEZE)
        return plan
