"""V-Skip (arXiv 2606.08511): deep layers skip the attention of visual tokens and keep their FFN.

Visual tokens relate to each other in early layers, and their FFN still turns them towards the text in deep ones. No
token is dropped, and text of every layer reads them. The paper calibrates on a few samples of a task which layers skip;
here the budget decides the first of them, and all later layers skip too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.planners.planner import SolvingPlanner

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from training.measure.latency import LatencyTable


class VSkipPlanner(SolvingPlanner):
    """V-Skip (arXiv 2606.08511): skips the attention of visual tokens from one layer on, and keeps their FFN.

    Takes either `budget` or `start`. A budget takes the last start that fits. It must leave room for every FFN.
    """

    solves = "start"
    planner: Literal["v_skip"]
    start: int | None = Field(default=None, ge=0)
    """Index of the first layer that skips the attention. Null: the budget decides."""

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan | None:
        """Returns the plan of the latest start within the budget, or of the given one.

        Returns None for a budget of latency without timings.

        Raises:
            UserError: the model has no layer `start`, or FFNs alone exceed the budget.
        """
        num_layers = config.text_config.num_hidden_layers
        if self.start is not None:
            if self.start >= num_layers:
                allowed = f"0 to {num_layers - 1}, as the model has {num_layers} layers"
                raise UserError(f"plan.start: got {self.start}, allowed: {allowed}")
            return _plan(self.start, num_layers)
        starts, cheapest = range(num_layers + 1), "all layers without attention of visual tokens"
        return self.largest_within_budget(config, latency, starts, lambda start: _plan(start, num_layers), cheapest)


def _plan(start: int, num_layers: int) -> VisualPlan:
    """Returns the plan without attention of visual tokens from layer `start` on."""
    plan = VisualPlan.dense(num_layers)
    for layer in range(start, num_layers):
        plan = plan.replace(layer, attend=False)
    return plan
