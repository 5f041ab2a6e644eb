"""What a planned model may cost, how a plan's cost is counted while it is searched for, and the largest plan that fits."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import ClassVar

from pydantic import Field, model_validator
from transformers import PreTrainedConfig

from checkpoints.families import reference_images
from modeling.user_error import UserError
from modeling.visual_flops import DecoderShape, visual_fraction
from modeling.visual_plan import VisualPlan
from training.schema import Strict

SHARE_STEPS = 1024
SHARES = tuple(step / SHARE_STEPS for step in range(SHARE_STEPS + 1))
"""The shares of visual tokens that budgets are solved for, from none to all."""


class Budget(Strict):
    """The most a plan may spend."""

    visual_flops: float = Field(ge=0, le=1)
    """Share of the dense model's FLOPs on visual tokens left in prefill (convention B of modeling/visual_flops.py), for a
    sample with one image."""


class SolvedSettings(Strict):
    """Settings of which either a budget is given or the one that it solves."""

    solves: ClassVar[str]
    """Name of that one, None where a budget is given."""
    budget: Budget | None = None

    @model_validator(mode="after")
    def _one_way(self):
        if (self.budget is None) == (getattr(self, self.solves) is None):
            raise ValueError(f"give either a budget or {self.solves}")
        return self


class PlanPrice:
    """The visual FLOPs of plans for one model, as a share of the dense model's; dead work costs nothing."""

    def __init__(self, config: PreTrainedConfig):
        self._shape = DecoderShape.from_config(config.text_config)
        self._images = reference_images(config)

    def __call__(self, plan: VisualPlan) -> float:
        return visual_fraction(plan, self._shape, self._images)


def largest_within(
    budget: Budget, config: PreTrainedConfig, sizes: Sequence[float], plan_of: Callable[[float], VisualPlan], least: str
) -> VisualPlan:
    """The plan of the largest size that fits the budget, by bisection.

    Args:
        sizes: ascending; plans of larger ones cost no less.
        least: what the plan of the smallest size is, in words.

    Raises:
        UserError: not even that one fits.
    """
    price = PlanPrice(config)
    num_fitting = bisect_right(sizes, budget.visual_flops, key=lambda size: price(plan_of(size)))
    if num_fitting == 0:
        got, cost = budget.visual_flops, price(plan_of(sizes[0]))
        raise UserError(f"plan.budget.visual_flops: got {got:g}, allowed: {cost:.4g} or more, the cost of {least}")
    return plan_of(sizes[num_fitting - 1])
