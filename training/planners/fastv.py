"""FastV's rule (arXiv 2403.06764): the first layers carry all visual tokens, the others those the last token attends to most.

As in the released in-place mode, survivors keep their positions; unlike it, each image of a sample keeps its share, and the
choice made in prefill holds for every generated token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from modeling.layer_plan import Rank
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.planners.planner import SolvingPlanner
from training.planners.tools.token_schedule import TOKEN_SHARES, token_schedule

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from training.measure.latency import LatencyTable

RANK = Rank(by="text_attention", rows="last")


class FastvPlanner(SolvingPlanner):
    """Either a budget or `keep`."""

    solves = "keep"
    planner: Literal["fastv"]
    layer: int = Field(default=2, ge=1)
    """Published as K: how many layers carry all visual tokens; the last of them ranks."""
    keep: float | None = Field(default=None, ge=0, le=1)
    """Share of the tokens that stay; published as 1 - R, 0.5 and 0.25."""

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan | None:
        """Returns the plan of the given share, or of the largest that fits the budget.

        Raises:
            UserError: `layer` is not below the model's number of layers, or the budget is below what the first layers cost.
        """
        num_layers = config.text_config.num_hidden_layers
        if self.layer >= num_layers:
            raise UserError(
                f"plan.layer: got {self.layer}, allowed: 1 to {num_layers - 1}, as the model has {num_layers} layers"
            )

        def plan(keep: float) -> VisualPlan:
            return token_schedule([1.0] * self.layer + [keep] * (num_layers - self.layer), RANK)

        if self.budget is None:
            return plan(self.keep)
        least = f"all tokens in the first layers (plan.layer: {self.layer})"
        return self.largest_within_budget(config, latency, TOKEN_SHARES, plan, least)
