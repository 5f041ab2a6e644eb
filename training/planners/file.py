"""File planner: reads a plan that exists already, for this model or for a model of another depth."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import model_validator

from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.planners.planner import Planner
from training.schema import FROM_ANYWHERE, MayChange

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from training.measure.latency import LatencyTable


class FilePlanner(Planner):
    """Reads the plan from a JSON file."""

    planner: Literal["file"]
    path: Annotated[Path, FROM_ANYWHERE, MayChange.WITH_EQUAL_CONTENT]
    """Path of the plan file."""
    relative_depth: bool = False
    """Whether the plan was made for a model of another depth. Each layer then takes the plan of the layer at the same
    relative depth. The plan must not name heads or neurons, because those differ from model to model."""

    @model_validator(mode="after")
    def _is_a_plan(self) -> FilePlanner:
        if not os.path.isfile(self.path):
            raise ValueError(f"{str(self.path)!r:.100}: no such plan file")
        VisualPlan.load(self.path)
        return self

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan:
        """Returns the plan in the file.

        Raises:
            UserError: the file is missing, holds no plan, or holds a plan that does not fit the model.
        """
        text = config.text_config
        plan = VisualPlan.load(self.path)
        try:
            if self.relative_depth:
                plan = _at_depth(plan, text.num_hidden_layers)
            plan.check(text.num_hidden_layers, text.num_key_value_heads, text.intermediate_size)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        return plan


def _at_depth(plan: VisualPlan, num_layers: int) -> VisualPlan:
    """Returns another model's plan for `num_layers` layers. Raises UserError if it names heads or neurons."""
    for index, layer in enumerate(plan.layers):
        for name in ("heads", "ffn"):
            if getattr(layer, name) not in (None, 0, ()):
                raise UserError(f"layer {index}: got {name}, allowed with relative_depth: all or none of them")
    return plan.at_depth(num_layers)
