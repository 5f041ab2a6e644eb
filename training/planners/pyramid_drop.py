"""PyramidDrop's rule (arXiv 2410.17247): at a few depths, the same share of the visual tokens still carried is let go.

Ranked by the attention of the instruction's last token (in training: of every token before an answer). The released code asks
the layer that comes next, and numbers positions anew; here the layer before is asked, whose attention is at hand, and
survivors keep their positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

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


class PyramidDropPlanner(SolvingPlanner):
    """Either a budget or `keep`."""

    solves = "keep"
    planner: Literal["pyramid_drop"]
    depths: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(default=(0.25, 0.5, 0.75), min_length=1)
    """Where stages begin, as shares of the number of layers; published: layers 8, 16 and 24 of 32."""
    keep: float | None = Field(default=None, ge=0, le=1)
    """Share of the stage before that each stage keeps; published as lambda, 0.5."""

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan | None:
        """Returns the plan of the given share, or of the largest that fits the budget.

        Raises:
            UserError: a depth beyond the last layer, or a budget below what the layers before the first depth cost.
        """
        num_layers = config.text_config.num_hidden_layers
        given, deepest = max(self.depths), (num_layers - 1) / num_layers
        if given > deepest:
            raise UserError(
                f"plan.depths: got {given}, allowed: up to {deepest:.4g}, as the model has {num_layers} layers"
            )
        stage = [sum(index / num_layers >= depth for depth in self.depths) for index in range(num_layers)]

        def plan(keep: float) -> VisualPlan:
            return token_schedule([keep**number for number in stage], RANK)

        if self.budget is None:
            return plan(self.keep)
        least = "all tokens in the layers before the first of plan.depths"
        return self.largest_within_budget(config, latency, TOKEN_SHARES, plan, least)
