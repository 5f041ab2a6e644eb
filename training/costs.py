"""What a plan costs a given model, for one image and a prompt of the published length: the figures of a report."""

from transformers import LlavaConfig

from modeling.configuration_sparse_llava import image_grid
from modeling.visual_flops import (
    DecoderShape,
    PlanCost,
    VisionShape,
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


def fractions(plan: VisualPlan, config: LlavaConfig) -> dict[str, float]:
    """Fractions of the dense model left under `plan`: visual FLOPs (B), decoder prefill FLOPs (C), key/value bytes."""
    decoder, grids = DecoderShape.from_config(config.text_config), [image_grid(config)]
    return {
        "visual_flops": visual_fraction(plan, decoder, grids),
        "model_flops": model_fraction(plan, decoder, grids, TEXT_TOKENS),
        "kv_bytes": kv_bytes(plan, decoder, grids, TEXT_TOKENS, 1) / dense_kv_bytes(decoder, grids, TEXT_TOKENS, 1),
    }


def cost_sheet(plan: VisualPlan, config: LlavaConfig, bytes_per_value: int) -> dict:
    """The contents of cost.json: the dense model's and the plan's cost in every convention, and by layer."""
    decoder, vision, grids = DecoderShape.from_config(config.text_config), VisionShape.from_config(config), [image_grid(config)]
    return {
        "num_units": decoder.num_kv_heads,
        "intermediate_size": decoder.intermediate_size,
        "layers": list(visual_fraction_by_layer(plan, decoder, grids)),
        "dense": {
            **_conventions(dense_cost(decoder, grids, TEXT_TOKENS, vision=vision)),
            "kv_bytes": dense_kv_bytes(decoder, grids, TEXT_TOKENS, bytes_per_value),
        },
        "plan": {
            **_conventions(plan_cost(plan, decoder, grids, TEXT_TOKENS, vision=vision)),
            "kv_bytes": kv_bytes(plan, decoder, grids, TEXT_TOKENS, bytes_per_value),
        },
    }


def _conventions(cost: PlanCost) -> dict[str, int]:
    return {"A": cost.macs_visual, "B": cost.flops_visual, "C": cost.flops_prefill, "D": cost.flops_total}
