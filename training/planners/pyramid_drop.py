"""PyramidDrop (arXiv 2410.17247): at a few depths, the same share of the visual tokens still carried is kept.

Tokens are ranked by the attention that they receive from the prompt's last token. In training, every token before an
answer counts as one. The released code uses the attention of the layer that comes next, and numbers positions anew.
Here the attention of the layer before is used, because it is computed already, and survivors keep their positions.
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
    """PyramidDrop (arXiv 2410.17247): drops in stages the visual tokens that the last token attends to least.

    Takes either `budget` or `keep`.
    """

    solves = "keep"
    planner: Literal["pyramid_drop"]
    depths: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(default=(0.25, 0.5, 0.75), min_length=1)
    """Depths at which a stage begins, as shares of the number of layers. The paper uses layers 8, 16 and 24 of 32."""
    keep: float | None = Field(default=None, ge=0, le=1)
    """Share of the tokens of the stage before that each stage keeps. The paper calls it lambda and uses 0.5. Null: the
    budget decides."""

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan | None:
        """Returns the plan with the given share of tokens, or with the largest share that fits the budget.

        Returns None for a budget of latency without timings.

        Raises:
            UserError: a depth lies beyond the last layer, or the layers before the first stage exceed the budget.
        """
        num_layers = config.text_config.num_hidden_layers
        given, deepest = max(self.depths), (num_layers - 1) / num_layers
        if given > deepest:
            raise UserError(
                f"plan.depths: got {given}, allowed: up to {deepest:.4g}, as the model has {num_layers} layers"
            )
        stages = [sum(index / num_layers >= depth for depth in self.depths) for index in range(num_layers)]

        def plan_of(share: float) -> VisualPlan:
            return token_schedule([share**stage for stage in stages], RANK)

        if self.budget is None:
            return plan_of(self.keep)
        cheapest = "all tokens in the layers before the first of plan.depths"
        return self.largest_within_budget(config, latency, TOKEN_SHARES, plan_of, cheapest)
