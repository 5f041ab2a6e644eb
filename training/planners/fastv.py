"""FastV (arXiv 2403.06764): from one layer on, only the visual tokens that the last token attends to most are carried.

The first layers carry all visual tokens. Survivors keep their positions, as in the in-place mode of the released code.
Two things differ from that code. Each picture of a sample keeps its own share of tokens. The choice made in the prefill
holds for every generated token.
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
    """FastV (arXiv 2403.06764): after the first layers, the visual tokens that the prompt's last token attends to most.

    Takes either `budget` or `keep`.
    """

    solves = "keep"
    planner: Literal["fastv"]
    layer: int = Field(default=2, ge=1)
    """Number of first layers that carry all visual tokens. The last of them ranks the tokens. The paper calls it K."""
    keep: float | None = Field(default=None, ge=0, le=1)
    """Share of each picture's visual tokens that later layers carry. The paper's R is 1 - keep; it uses 0.5 and 0.75.
    Null: the budget decides."""

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan | None:
        """Returns the plan with the given share of tokens, or with the largest share that fits the budget.

        Returns None for a budget of latency without timings.

        Raises:
            UserError: `layer` is not below the model's number of layers, or the first layers alone exceed the budget.
        """
        num_layers = config.text_config.num_hidden_layers
        if self.layer >= num_layers:
            raise UserError(
                f"plan.layer: got {self.layer}, allowed: 1 to {num_layers - 1}, as the model has {num_layers} layers"
            )

        def plan_of(share: float) -> VisualPlan:
            return token_schedule([1.0] * self.layer + [share] * (num_layers - self.layer), RANK)

        if self.budget is None:
            return plan_of(self.keep)
        cheapest = f"all tokens in the first layers (plan.layer: {self.layer})"
        return self.largest_within_budget(config, latency, TOKEN_SHARES, plan_of, cheapest)
