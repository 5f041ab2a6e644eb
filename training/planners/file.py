"""File planner: a plan somebody has written already, for this model or for one of another depth."""

from pathlib import Path
from typing import Literal

from transformers import PreTrainedConfig

from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.schema import Strict


class FileSettings(Strict):
    """A plan read from a JSON file."""

    planner: Literal["file"]
    path: Path
    relative_depth: bool = False
    """The plan is another model's: each layer does as the one at its relative depth there. Of token schedules and other plans
    that name no heads or neurons, which are every model's own."""


def plan_from_file(text_config: PreTrainedConfig, settings: FileSettings) -> VisualPlan:
    """Raises UserError when the file is missing, is not a plan, or does not fit the model."""
    plan = VisualPlan.load(settings.path)
    try:
        if settings.relative_depth:
            plan = _of_another_model(plan, text_config.num_hidden_layers)
        plan.check(text_config.num_hidden_layers, text_config.num_key_value_heads, text_config.intermediate_size)
    except UserError as error:
        raise UserError(f"{settings.path}: {error}") from None
    return plan


def _of_another_model(plan: VisualPlan, num_layers: int) -> VisualPlan:
    for index, layer in enumerate(plan.layers):
        for name in ("heads", "ffn"):
            if getattr(layer, name) not in (None, 0, ()):
                raise UserError(f"layer {index}: got {name}, allowed with relative_depth: all or none of them")
    return plan.at_depth(num_layers)
