"""HiMAP's rule (arXiv 2503.13108): tokens fall twice, first by what text attends to, deeper by what the image itself attends to.

Before the first layer named, tokens are ranked by the attention they receive from all text after the image, before the second
by that from the surviving tokens of their own image, each in the layer before, mean over heads. Survivors keep their
positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from modeling.layer_plan import Rank
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.planners.planner import SolvingPlanner
from training.planners.tools.token_schedule import DIGITS, TOKEN_SHARES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from training.measure.latency import LatencyTable

BY_TEXT = Rank(by="text_attention", rows="instruction")
BY_IMAGE = Rank(by="image_attention")

Layer = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class HimapPlanner(SolvingPlanner):
    """Either a budget or `keep`."""

    solves = "keep"
    planner: Literal["himap"]
    layers: tuple[Layer, Layer] = (2, 8)
    """The first layers with fewer tokens; published as K1 and K2, of 32 layers."""
    keep: tuple[Share, Share] | None = None
    """Shares of each image's original tokens from then on; published: 1/2 and 1/8.
    A budget solves the first; the second is its cube, as published."""

    @model_validator(mode="after")
    def _falling(self) -> HimapPlanner:
        if self.layers[0] >= self.layers[1]:
            raise ValueError("layers: the second comes after the first")
        if self.keep is not None and self.keep[1] > self.keep[0]:
            raise ValueError("keep: the second share is no larger than the first")
        return self

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan | None:
        """Returns the plan of the given shares, or of the largest that fit the budget.

        Raises:
            UserError: a layer that the model does not have, or a budget below what the layers before the first cost.
        """
        num_layers, (first, second) = config.text_config.num_hidden_layers, self.layers
        if second >= num_layers:
            raise UserError(
                f"plan.layers: got {second}, allowed: 1 to {num_layers - 1}, as the model has {num_layers} layers"
            )

        def plan(by_text: float, by_image: float) -> VisualPlan:
            dense = VisualPlan.dense(num_layers)
            return dense.replace(first, tokens=by_text, rank=BY_TEXT).replace(second, tokens=by_image, rank=BY_IMAGE)

        if self.budget is None:
            return plan(*self.keep)
        return self.largest_within_budget(
            config,
            latency,
            TOKEN_SHARES,
            lambda share: plan(share, round(share**3, DIGITS)),
            f"all tokens in the first layers (plan.layers: {first}, {second})",
        )
