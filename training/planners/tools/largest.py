"""Finds the largest plan that fits a budget, among plans that grow with one number."""

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
    cheapest: str,
) -> VisualPlan:
    """Returns the plan of the largest size that fits the budget. It is found by bisection.

    Args:
        config: config of the model.
        latency: timings of the machine, needed for a budget of latency.
        sizes: ascending numbers.
        plan_of: gives the plan of a size. Plans of larger sizes must not cost less.
        cheapest: describes the plan of the smallest size in words, for the error message.

    Raises:
        UserError: even the plan of the smallest size exceeds the budget.
    """
    price = PlanPrice(config, budget.measure, latency)
    num_fitting = bisect_right(sizes, budget.share, key=lambda size: price(plan_of(size)))
    if num_fitting == 0:
        budget.refuse_below(price(plan_of(sizes[0])), cheapest)
    return plan_of(sizes[num_fitting - 1])
