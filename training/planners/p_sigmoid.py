"""P-Sigmoid (arXiv 2412.00556): the share of visual tokens falls with depth along a sigmoid.

    r(i) = 1 / (1 + exp(k * (i - alpha)))

Layers are counted from 1. The first two carry all visual tokens; before every layer i from 3 on, the ceil(r(i) * N) of each
image's N original tokens stay that received most attention in layer i - 1. The paper names neither the query rows of that
attention nor its rounding: here it is the mean over heads and over the prompt after the image, and shares are rounded to
six decimals, so that one of less than half a millionth withdraws the tokens.
"""

import math
from typing import Literal

from pydantic import Field
from transformers import PreTrainedConfig

from modeling.visual_plan import Rank, VisualPlan
from training.planners.budget import SolvedSettings, largest_within
from training.planners.token_schedule import token_schedule

RANK = Rank(by="text_attention", rows="instruction")
FULL_LAYERS = 2
ALPHA_STEPS = 2**20
FLAT = 15.0
"""A sigmoid this far from its middle, in units of 1 / k, is rounded to 0 or 1."""


class PSigmoidSettings(SolvedSettings):
    """`k`, and either a budget or `alpha`."""

    solves = "alpha"
    planner: Literal["p_sigmoid"]
    k: float = Field(gt=0, allow_inf_nan=False)
    """How steeply shares fall, per layer. Found by search for LLaVA-1.5-7B (32 layers): 0.3558, 0.4808, 0.4568, 0.7478 and
    0.933 at 2.24, 2.66, 3.38, 4.26 and 5.2 TFLOPs of 9.18."""
    alpha: float | None = Field(default=None, allow_inf_nan=False)
    """The layer, counted from 1, before which half of the tokens stay."""


def plan_p_sigmoid(config: PreTrainedConfig, settings: PSigmoidSettings) -> VisualPlan:
    """The plan of the given `alpha`, or of the largest that fits the budget.

    Raises:
        ValueError: the budget is below what the first two layers cost.
    """
    num_layers = config.text_config.num_hidden_layers

    def plan(alpha: float) -> VisualPlan:
        shares = [1.0 if i <= FULL_LAYERS else _share(i, settings.k, alpha) for i in range(1, num_layers + 1)]
        return token_schedule(shares, RANK)

    if settings.budget is None:
        return plan(settings.alpha)
    # From no token after the full layers to all tokens in every layer.
    low, high = FULL_LAYERS + 1 - FLAT / settings.k, num_layers + FLAT / settings.k
    return largest_within(
        settings.budget,
        config,
        range(ALPHA_STEPS + 1),
        lambda step: plan(low + (high - low) * step / ALPHA_STEPS),
        f"all tokens in the first {FULL_LAYERS} layers",
    )


def _share(i: int, k: float, alpha: float) -> float:
    """r(i), written so that no exponential overflows."""
    return (1 - math.tanh(k * (i - alpha) / 2)) / 2
