"""The costs of a plan that a report shows, for one picture and a prompt of the published length."""

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
"""Number of text tokens in the published conventions (modeling/visual_flops.py)."""


def fractions(plan: VisualPlan, config: PreTrainedConfig) -> dict[str, float]:
    """Returns the shares of the stock model's costs that are left under `plan`, by measure.

    The measures are `visual_flops` (convention B), `model_flops` of the decoder's prefill (convention C), and
    `kv_bytes`.

    Raises:
        UserError: the plan does not fit the model.
    """
    decoder, images = DecoderShape.from_config(config.text_config), reference_images(config)
    return {
        "visual_flops": visual_fraction(plan, decoder, images),
        "model_flops": model_fraction(plan, decoder, images, TEXT_TOKENS),
        "kv_bytes": kv_bytes(plan, decoder, images, TEXT_TOKENS, 1) / dense_kv_bytes(decoder, images, TEXT_TOKENS, 1),
    }


def cost_sheet(plan: VisualPlan, config: PreTrainedConfig, bytes_per_value: int) -> dict:
    """Returns the contents of cost.json: the dense model's and the plan's cost in every convention.

    `layers` holds the share of the visual FLOPs that is left in each layer.

    Args:
        bytes_per_value: bytes of one key or value number in the cache.

    Raises:
        UserError: the plan does not fit the model.
    """
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
    """Returns a cost by the letters of the conventions. A is in MACs, the others are in FLOPs."""
    return {"A": cost.macs_visual, "B": cost.flops_visual, "C": cost.flops_prefill, "D": cost.flops_total}
