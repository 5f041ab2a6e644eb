"""File planner: a plan somebody has written already, for this model or for one of another depth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.planners.planner import Planner

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from training.measure.latency import LatencyTable


class FilePlanner(Planner):
    """A plan read from a JSON file."""

    planner: Literal["file"]
    path: Path
    relative_depth: bool = False
    """The plan is another model's: each layer does as the one at its relative depth there. Of token schedules and other plans
    that name no heads or neurons, which are every model's own."""

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan:
        """Returns the plan in the file. Raises UserError where it is missing, is not a plan, or does not fit the model."""
        text = config.text_config
        plan = VisualPlan.load(self.path)
        try:
            if self.relative_depth:
                plan = _of_another_model(plan, text.num_hidden_layers)
            plan.check(text.num_hidden_layers, text.num_key_value_heads, text.intermediate_size)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        return plan


def _of_another_model(plan: VisualPlan, num_layers: int) -> VisualPlan:
    for index, layer in enumerate(plan.layers):
        for name in ("heads", "ffn"):
            if getattr(layer, name) not in (None, 0, ()):
                raise UserError(f"layer {index}: got {name}, allowed with relative_depth: all or none of them")
    return plan.at_depth(num_layers)
