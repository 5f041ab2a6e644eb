"""What a plan costs a given model, for one image and a prompt of the published length: the figures of a report."""

from transformers import PreTrainedConfig

from checkpoints.families import reference_images, vision_macs
from modeling.visual_flops import (
    DecoderShape,
    PlanCost,
    dense_cost,
    dense_kv_bytes,
    kv_bytes,
    model_fraction,
    plan_cost,
    visual_fraction,
    visual_fraction_by_layer,
)
from modeling.visual_plan import VisualPlan

TEXT_TOKENS = 64
"""Text tokens of the published conventions (modeling/visual_flops.py)."""


def fractions(plan: VisualPlan, config: PreTrainedConfig) -> dict[str, float]:
    """Fractions of the dense model left under `plan`: visual FLOPs (B), decoder prefill FLOPs (C), key/value bytes."""
    decoder, images = DecoderShape.from_config(config.text_config), reference_images(config)
    return {
        "visual_flops": visual_fraction(plan, decoder, images),
        "model_flops": model_fraction(plan, decoder, images, TEXT_TOKENS),
        "kv_bytes": kv_bytes(plan, decoder, images, TEXT_TOKENS, 1) / dense_kv_bytes(decoder, images, TEXT_TOKENS, 1),
    }


def cost_sheet(plan: VisualPlan, config: PreTrainedConfig, bytes_per_value: int) -> dict:
    """The contents of cost.json: the dense model's and the plan's cost in every convention, and by layer."""
    decoder, images = DecoderShape.from_config(config.text_config), reference_images(config)
    vision = vision_macs(config, images)
    return {
        "num_units": decoder.num_kv_heads,
        "intermediate_size": decoder.intermediate_size,
        "layers": list(visual_fraction_by_layer(plan, decoder, images)),
        "dense": {
            **_conventions(dense_cost(decoder, images, TEXT_TOKENS, vision_macs=vision)),
            "kv_bytes": dense_kv_bytes(decoder, images, TEXT_TOKENS, bytes_per_value),
        },
        "plan": {
            **_conventions(plan_cost(plan, decoder, images, TEXT_TOKENS, vision_macs=vision)),
            "kv_bytes": kv_bytes(plan, decoder, images, TEXT_TOKENS, bytes_per_value),
        },
    }


def _conventions(cost: PlanCost) -> dict[str, int]:
    return {"A": cost.macs_visual, "B": cost.flops_visual, "C": cost.flops_prefill, "D": cost.flops_total}
