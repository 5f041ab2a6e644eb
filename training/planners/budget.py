"""What a planned model may cost, and how a plan's cost is counted while it is searched for."""

from pydantic import Field
from transformers import PreTrainedConfig

from checkpoints.families import reference_images
from modeling.visual_flops import DecoderShape, visual_fraction
from modeling.visual_plan import VisualPlan
from training.schema import Strict


class Budget(Strict):
    """The most a plan may spend."""

    visual_flops: float = Field(ge=0, le=1)
    """Share of the dense model's FLOPs on visual tokens left in prefill (convention B of modeling/visual_flops.py), for a
    sample with one image."""


class PlanPrice:
    """The visual FLOPs of plans for one model, as a share of the dense model's; dead work costs nothing."""

    def __init__(self, config: PreTrainedConfig):
        self._shape = DecoderShape.from_config(config.text_config)
        self._images = reference_images(config)

    def __call__(self, plan: VisualPlan) -> float:
        return visual_fraction(plan, self._shape, self._images)
