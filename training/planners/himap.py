"""HiMAP (arXiv 2503.13108): visual tokens are dropped twice, first ranked by text, deeper ranked by their own picture.

Before the first of two layers, tokens are ranked by the attention that they receive from all text after the picture.
Before the second, they are ranked by the attention that they receive from the surviving tokens of their own picture.
Both use the attention of the layer before, averaged over heads. Survivors keep their positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from modeling.layer_plan import Rank
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.planners.planner import SolvingPlanner
from training.planners.tools.token_schedule import SHARE_DIGITS, TOKEN_SHARES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from training.measure.latency import LatencyTable

RANK_BY_TEXT = Rank(by="text_attention", rows="instruction")
RANK_BY_PICTURE = Rank(by="image_attention")

Layer = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class HimapPlanner(SolvingPlanner):
    """HiMAP (arXiv 2503.13108): drops visual tokens before two layers, ranked first by text, then by their own picture.

    Takes either `budget` or `keep`.
    """

    solves = "keep"
    planner: Literal["himap"]
    layers: tuple[Layer, Layer] = (2, 8)
    """The two layers, counted from 0, before which tokens are dropped. The paper calls them K1 and K2, and uses 2 and 8
    of 32 layers."""
    keep: tuple[Share, Share] | None = None
    """Shares of each picture's original visual tokens that are carried from each of the two layers on. The paper uses
    1/2 and 1/8. Null: the budget decides the first share, and the second is its cube, as in the paper."""

    @model_validator(mode="after")
    def _falling(self) -> HimapPlanner:
        if self.layers[0] >= self.layers[1]:
            raise ValueError("layers: the second comes after the first")
        if self.keep is not None and self.keep[1] > self.keep[0]:
            raise ValueError("keep: the second share is no larger than the first")
        return self

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan | None:
        """Returns the plan with the given shares of tokens, or with the largest shares that fit the budget.

        Returns None for a budget of latency without timings.

        Raises:
            UserError: the model does not have the second layer, or the layers before the first exceed the budget.
        """
        num_layers, (first, second) = config.text_config.num_hidden_layers, self.layers
        if second >= num_layers:
            raise UserError(
                f"plan.layers: got {second}, allowed: 1 to {num_layers - 1}, as the model has {num_layers} layers"
            )

        def plan_of(first_share: float, second_share: float) -> VisualPlan:
            plan = VisualPlan.dense(num_layers).replace(first, tokens=first_share, rank=RANK_BY_TEXT)
            return plan.replace(second, tokens=second_share, rank=RANK_BY_PICTURE)

        if self.budget is None:
            return plan_of(*self.keep)
        return self.largest_within_budget(
            config,
            latency,
            TOKEN_SHARES,
            lambda share: plan_of(share, round(share**3, SHARE_DIGITS)),
            f"all tokens in the first layers (plan.layers: {first}, {second})",
        )
