"""P-Sigmoid (arXiv 2412.00556): the share of visual tokens falls with depth along a sigmoid.

    r(i) = 1 / (1 + exp(k * (i - alpha)))

Layers are counted from 1. By default the first two carry all visual tokens. Layer i after them carries ceil(r(i) * N)
of each picture's N original tokens. These are the tokens that received most attention in layer i - 1.

The paper does not state which query rows count in that attention, nor how shares are rounded. Here the attention is the
mean over heads and over the prompt after the picture. Shares are rounded to six decimals, so a share below half a
millionth withdraws the tokens.

A budget decides alpha. If k is not given, Bayesian optimisation searches for the k whose plan changes the answers
least. It tries the published values of k first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from optuna.distributions import FloatDistribution
from pydantic import Field, model_validator

from data.sources.settings import Seed
from modeling.visual_plan import VisualPlan
from training.planners.planner import SolvingPlanner
from training.planners.tools.token_schedule import RANK_BY_INSTRUCTION, token_schedule
from training.planners.tools.trials import TRIALS, Trials
from training.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from training.measure.latency import LatencyTable
    from training.planners.tools.search import Search

PUBLISHED_K, PUBLISHED_LAYERS = (0.3558, 0.4808, 0.4568, 0.7478, 0.933), 32
"""The values of k that the paper found for LLaVA-1.5-7B, at 2.24, 2.66, 3.38, 4.26 and 5.2 of its 9.18 TFLOPs."""
K_RANGE = (0.05, 20.0)
"""The range of k that is searched for a model of `PUBLISHED_LAYERS` layers.

A sigmoid of the same steepness relative to depth has a k in inverse proportion to the number of layers.
"""
ALPHA_STEPS = 2**20
"""Number of steps in which alpha is solved for a budget."""
SATURATION = 15.0
"""At this distance from the middle of a sigmoid, in units of 1 / k, a share is rounded to 0 or 1."""


class PSigmoidPlanner(SolvingPlanner):
    """P-Sigmoid (arXiv 2412.00556): the share of visual tokens falls with depth along a sigmoid.

    Takes either `budget` or `alpha`. With a budget, `k` may be left out and is then searched.
    """

    solves = "alpha"
    plot = "slopes"
    planner: Literal["p_sigmoid"]
    k: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Steepness of the sigmoid, per layer. Null: the k whose plan has the smallest answer KL within the budget is
    searched."""
    alpha: float | None = Field(default=None, allow_inf_nan=False)
    """Middle of the sigmoid: the layer, counted from 1, that carries half of the visual tokens. Null: the budget
    decides."""
    full_layers: int = Field(default=2, ge=1)
    """Number of first layers that carry all visual tokens."""
    trials: int = Field(default=16, ge=1)
    """Number of values of k that the search tries. It has no effect where `k` is given."""
    seed: Seed = 0
    """Seed of the search. It has no effect where `k` is given."""

    @model_validator(mode="after")
    def _searched_within_a_budget(self) -> PSigmoidPlanner:
        if self.k is None and self.budget is None:
            raise ValueError("k is searched within a budget: give k, or a budget rather than alpha")
        return self

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan | None:
        """Returns the plan for the given `k`, with the given `alpha` or the largest that fits the budget.

        Returns None without `k`, and for a budget of latency without timings.

        Raises:
            UserError: the first layers alone exceed the budget.
        """
        if self.k is None:
            return None
        num_layers, full = config.text_config.num_hidden_layers, self.full_layers

        def plan_of(alpha: float) -> VisualPlan:
            shares = [1.0 if i <= full else _share(i, self.k, alpha) for i in range(1, num_layers + 1)]
            return token_schedule(shares, RANK_BY_INSTRUCTION)

        if self.budget is None:
            return plan_of(self.alpha)
        # At `low` no token is left after the full layers. At `high` every layer carries all tokens.
        low, high = full + 1 - SATURATION / self.k, num_layers + SATURATION / self.k
        return self.largest_within_budget(
            config,
            latency,
            range(ALPHA_STEPS + 1),
            lambda step: plan_of(low + (high - low) * step / ALPHA_STEPS),
            f"all tokens in the first layers (plan.full_layers: {full})",
        )

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan for the given `k`, or for the `k` with the smallest answer KL within the budget.

        Raises:
            UserError: the first layers alone exceed the budget, or `k` is searched and no calibration sample with an
                image has an answer.
        """
        if self.k is not None:
            return super().find(search)
        scale = PUBLISHED_LAYERS / search.config.text_config.num_hidden_layers
        low, high = (bound * scale for bound in K_RANGE)

        def plan_of(k: float) -> VisualPlan:
            return self.model_copy(update={"k": k}).plan_of_config(search.config, search.latency)

        best = Trials(search.file(TRIALS)).minimize(
            "k",
            FloatDistribution(low, high, log=True),
            lambda k: search.answer_kl(plan_of(k)),
            initial=[k * scale for k in PUBLISHED_K],
            num_trials=self.trials,
            seed=self.seed,
        )
        Progress.write(f"p_sigmoid plan: k {best:.4g}, answer KL {search.answer_kl(plan_of(best)):.3g}")
        return plan_of(best)


def _share(i: int, k: float, alpha: float) -> float:
    """Returns r(i), the share of visual tokens in layer i counted from 1.

    The hyperbolic tangent gives the same number as the formula, and does not overflow.
    """
    return (1 - math.tanh(k * (i - alpha) / 2)) / 2
