"""File planner: a plan somebody has written already."""

from pathlib import Path
from typing import Literal

from transformers import PreTrainedConfig

from modeling.visual_plan import VisualPlan
from training.schema import Strict


class FileSettings(Strict):
    """A plan read from a JSON file."""

    planner: Literal["file"]
    path: Path


def plan_from_file(text_config: PreTrainedConfig, settings: FileSettings) -> VisualPlan:
    """Raises ValueError when the file is missing, is not a plan, or does not fit the model."""
    plan = VisualPlan.load(settings.path)
    try:
        plan.check(text_config.num_hidden_layers, text_config.num_key_value_heads, text_config.intermediate_size)
    except ValueError as error:
        raise ValueError(f"{settings.path}: {error}") from None
    return plan
