"""P-Sigmoid (arXiv 2412.00556): the share of visual tokens falls with depth along a sigmoid.

    r(i) = 1 / (1 + exp(k * (i - alpha)))

Layers are counted from 1. The first two carry all visual tokens; before every layer i from 3 on, the ceil(r(i) * N) of each
image's N original tokens stay that received most attention in layer i - 1. The paper names neither the query rows of that
attention nor its rounding: here it is the mean over heads and over the prompt after the image, and shares are rounded to
six decimals, so that one of less than half a millionth withdraws the tokens.

A budget decides alpha. Where k is not given, the one whose plan moves the answers least is searched by Bayesian optimisation,
starting from the published ones.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from optuna.distributions import FloatDistribution
from pydantic import Field, model_validator
from tqdm.auto import tqdm

from modeling.visual_plan import VisualPlan
from training.planners.planner import SolvingPlanner
from training.planners.tools.token_schedule import RECEIVED, token_schedule
from training.planners.tools.trials import TRIALS, Trials

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from training.measure.latency import LatencyTable
    from training.planners.tools.search import Search

PUBLISHED_K, PUBLISHED_LAYERS = (0.3558, 0.4808, 0.4568, 0.7478, 0.933), 32
"""Found by search for LLaVA-1.5-7B, at 2.24, 2.66, 3.38, 4.26 and 5.2 TFLOPs of 9.18."""
SEARCHED = (0.05, 20.0)
"""k of a model with as many layers; a sigmoid as steep relative to depth has a k in inverse proportion to them."""
ALPHA_STEPS = 2**20
FLAT = 15.0
"""A sigmoid this far from its middle, in units of 1 / k, is rounded to 0 or 1."""


class PSigmoidPlanner(SolvingPlanner):
    """Either a budget or `alpha`; `k`, or with a budget its search."""

    solves = "alpha"
    plot = "slopes"
    planner: Literal["p_sigmoid"]
    k: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """How steeply shares fall, per layer; null: searched."""
    alpha: float | None = Field(default=None, allow_inf_nan=False)
    """The layer, counted from 1, before which half of the tokens stay."""
    full_layers: int = Field(default=2, ge=1)
    """How many layers carry all visual tokens."""
    trials: int = Field(default=16, ge=1)
    """How many k are tried."""
    seed: int = Field(default=0, ge=0)
    """Of the search."""

    @model_validator(mode="after")
    def _searched_within_a_budget(self) -> PSigmoidPlanner:
        if self.k is None and self.budget is None:
            raise ValueError("k is searched within a budget: give k, or a budget rather than alpha")
        return self

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan | None:
        """Returns the plan of the given `k`, with the given `alpha` or the largest that fits the budget; None without `k`.

        Raises:
            UserError: the budget is below what the first layers cost.
        """
        if self.k is None:
            return None
        num_layers, full = config.text_config.num_hidden_layers, self.full_layers

        def plan(alpha: float) -> VisualPlan:
            shares = [1.0 if i <= full else _share(i, self.k, alpha) for i in range(1, num_layers + 1)]
            return token_schedule(shares, RECEIVED)

        if self.budget is None:
            return plan(self.alpha)
        # From no token after the full layers to all tokens in every layer.
        low, high = full + 1 - FLAT / self.k, num_layers + FLAT / self.k
        return self.largest_within_budget(
            config,
            latency,
            range(ALPHA_STEPS + 1),
            lambda step: plan(low + (high - low) * step / ALPHA_STEPS),
            f"all tokens in the first layers (plan.full_layers: {full})",
        )

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan of the given `k`, or of the `k` with the least answer KL within the budget.

        Raises:
            UserError: the budget is below what the first layers cost.
        """
        if self.k is not None:
            return super().find(search)
        scale = PUBLISHED_LAYERS / search.config.text_config.num_hidden_layers
        low, high = (bound * scale for bound in SEARCHED)

        def plan(k: float) -> VisualPlan:
            return self.model_copy(update={"k": k}).plan_of_config(search.config, search.latency)

        best = Trials(search.file(TRIALS)).least(
            "k",
            FloatDistribution(low, high, log=True),
            lambda k: search.answer_kl(plan(k)),
            first=[k * scale for k in PUBLISHED_K],
            count=self.trials,
            seed=self.seed,
        )
        tqdm.write(f"p_sigmoid plan: k {best:.4g}, answer KL {search.answer_kl(plan(best)):.3g}")
        return plan(best)


def _share(i: int, k: float, alpha: float) -> float:
    """r(i), written so that no exponential overflows."""
    return (1 - math.tanh(k * (i - alpha) / 2)) / 2
