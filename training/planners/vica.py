"""ViCA (arXiv 2602.07574): no layer updates visual tokens, and text reads them in a few layers only.

Text reads the tokens as the projector left them. As many layers are read as the budget allows. These are the layers
whose units raise the answer KL most when they stop serving visual tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from modeling.layer_plan import LayerPlan
from modeling.visual_plan import VisualPlan
from training.planners.planner import BudgetPlanner

if TYPE_CHECKING:
    from training.planners.tools.search import Search


class VicaPlanner(BudgetPlanner):
    """ViCA (arXiv 2602.07574): never updates visual tokens, and lets text read them in the layers that matter most."""

    reads_statistics = True
    reads_unit_kl = True
    planner: Literal["vica"]

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan with the most layers read that fits the budget.

        Raises:
            UserError: even one layer read exceeds the budget.
        """
        price = search.price_within(self.budget)
        order = search.calibration.unit_kl.sum(dim=1).argsort(descending=True, stable=True).tolist()
        plans = [_plan(len(order), frozenset(order[:count])) for count in range(len(order), 0, -1)]
        self.budget.refuse_below(price(plans[-1]), "one layer read")
        return next(plan for plan in plans if price(plan) <= self.budget.share)


def _plan(num_layers: int, read: frozenset[int]) -> VisualPlan:
    """Returns the plan that is frozen everywhere, read in the layers `read`, and withdrawn after the last of them."""
    return VisualPlan(
        layers=tuple(
            LayerPlan(attend=False, ffn=0, read=index in read) if index <= max(read) else LayerPlan(tokens=0.0)
            for index in range(num_layers)
        )
    )
