"""ViCA's plan (arXiv 2602.07574): no layer updates visual tokens, text reads them in a few layers as the projector left them.

Which layers: as many as the budget allows, those whose units cost the most answer KL when they stop serving vision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from modeling.layer_plan import LayerPlan
from modeling.visual_plan import VisualPlan
from training.planners.planner import BudgetPlanner

if TYPE_CHECKING:
    from training.planners.tools.search import Search


class VicaPlanner(BudgetPlanner):
    """Frozen visual tokens, read in the layers that need it most."""

    reads_statistics = True
    planner: Literal["vica"]

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan. Raises UserError where the budget does not reach for one layer."""
        price = search.price_within(self.budget)
        order = search.calibration.unit_kl.sum(dim=1).argsort(descending=True, stable=True).tolist()
        plans = [_plan(len(order), frozenset(order[:count])) for count in range(len(order), 0, -1)]
        self.budget.refuse_below(price(plans[-1]), "one layer read")
        return next(plan for plan in plans if price(plan) <= self.budget.share)


def _plan(num_layers: int, read: frozenset[int]) -> VisualPlan:
    """Frozen everywhere, read in the layers `read`, withdrawn after the last of them."""
    return VisualPlan(
        layers=tuple(
            LayerPlan(attend=False, ffn=0, read=index in read) if index <= max(read) else LayerPlan(tokens=0.0)
            for index in range(num_layers)
        )
    )
