"""The largest plan that fits a budget, of a family of plans that grow with one number."""

from bisect import bisect_right
from collections.abc import Callable, Sequence

from transformers import PreTrainedConfig

from modeling.visual_plan import VisualPlan
from training.measure.budget import Budget
from training.measure.latency import LatencyTable
from training.measure.price import PlanPrice


def largest_within(
    budget: Budget,
    config: PreTrainedConfig,
    latency: LatencyTable | None,
    sizes: Sequence[float],
    plan_of: Callable[[float], VisualPlan],
    least: str,
) -> VisualPlan:
    """Returns the plan of the largest size that fits the budget, by bisection.

    Args:
        latency: for a budget of latency.
        sizes: ascending; plans of larger sizes cost no less.
        least: what the plan of the smallest size is, in words.

    Raises:
        UserError: not even that one fits.
    """
    price = PlanPrice(config, budget.measure, latency)
    num_fitting = bisect_right(sizes, budget.share, key=lambda size: price(plan_of(size)))
    if num_fitting == 0:
        budget.refuse_below(price(plan_of(sizes[0])), least)
    return plan_of(sizes[num_fitting - 1])
