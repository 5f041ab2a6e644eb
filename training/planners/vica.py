"""ViCA's plan (arXiv 2602.07574): no layer updates visual tokens, text reads them in a few layers as the projector left them.

Which layers: as many as the budget allows, those whose units cost the most answer KL when they stop serving vision.
"""

from typing import Literal

from transformers import PreTrainedConfig

from modeling.layer_plan import LayerPlan
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.measure.calibration import Calibration
from training.planners.tools.budget import Budget, PlanPrice
from training.schema import Strict


class VicaSettings(Strict):
    """Frozen visual tokens, read in the layers that need it most."""

    planner: Literal["vica"]
    budget: Budget


def plan_vica(config: PreTrainedConfig, calibration: Calibration, settings: VicaSettings) -> VisualPlan:
    """Raises UserError where the budget does not reach for one layer."""
    price, order = PlanPrice(config), calibration.unit_kl.sum(dim=1).argsort(descending=True, stable=True).tolist()
    plans = [_plan(len(order), frozenset(order[:count])) for count in range(len(order), 0, -1)]
    within = [plan for plan in plans if price(plan) <= settings.budget.visual_flops]
    if not within:
        raise UserError(
            f"plan.budget.visual_flops: got {settings.budget.visual_flops}, one layer read costs {price(plans[-1]):.4f}"
        )
    return within[0]


def _plan(num_layers: int, read: frozenset[int]) -> VisualPlan:
    """Frozen everywhere, read in the layers `read`, withdrawn after the last of them."""
    return VisualPlan(
        layers=tuple(
            LayerPlan(attend=False, ffn=0, read=index in read) if index <= max(read) else LayerPlan(tokens=0.0)
            for index in range(num_layers)
        )
    )
