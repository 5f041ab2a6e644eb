"""Models that can be measured without their trained weights.

A model's shape comes from sizes or from a config file. Its plan may come from a checkpoint of another shape.
"""

import math
import os
from dataclasses import replace
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, PreTrainedConfig, PreTrainedModel

from checkpoints.checks.folder import checked_json
from checkpoints.config import LOADING_ERRORS, said
from checkpoints.families import SPARSE, class_of_type, sparse_class, sparse_classes, supported
from modeling.layer_plan import num_served
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan

HEAD_DIM = 64
PATCH_SIZE = 14
VOCAB_SIZE = 4096
CLASS_FIELDS = ("model_type", "architectures", "auto_map", "visual_plan")
"""Fields of a config that tell its class or its plan, and not its shape."""


def shape_of_sizes(hidden_size: int, num_layers: int, visual_tokens: int) -> LlavaConfig:
    """Returns the config of a LLaVA of these sizes, with Llama's proportions and heads of width 64.

    Its vision tower is so small that its cost does not matter.

    Raises:
        UserError: `hidden_size` is no multiple of 64, `num_layers` is below 1, or `visual_tokens` is no square number.
    """
    if hidden_size < HEAD_DIM or hidden_size % HEAD_DIM:
        raise UserError(f"hidden size: got {hidden_size}, allowed: multiples of {HEAD_DIM}")
    if num_layers < 1:
        raise UserError(f"layers: got {num_layers}, allowed: 1 or more")
    side = math.isqrt(max(visual_tokens, 0))
    if side == 0 or side**2 != visual_tokens:
        raise UserError(f"visual tokens: got {visual_tokens}, allowed: a square number")
    text = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 43 // 16,  # as in Llama 7B: 11008 / 4096
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // HEAD_DIM,
        num_key_value_heads=hidden_size // HEAD_DIM,
        max_position_embeddings=max(4096, 2 * visual_tokens),
    )
    vision = CLIPVisionConfig(
        hidden_size=HEAD_DIM,
        intermediate_size=HEAD_DIM,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=side * PATCH_SIZE,
        patch_size=PATCH_SIZE,
    )
    return LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=VOCAB_SIZE - 1, vision_feature_layer=-1
    )


def shape_of_file(path: str | os.PathLike) -> PreTrainedConfig:
    """Returns the stock config in a JSON file, which may be a checkpoint's config.json or a file of recipes/shapes.

    Raises:
        UserError: the file is missing or not JSON, its model type is not supported, or transformers refuses it.
    """
    values = checked_json(Path(path))
    if str(values.get("model_type")).removeprefix(SPARSE) not in sparse_classes():
        raise UserError(
            f"{path}: got model_type {values.get('model_type')!r}, supported, dense or sparse: {supported()}"
        )
    try:
        return stock_config(values)
    except LOADING_ERRORS as error:
        raise UserError(f"{path}: not a config that transformers accepts ({said(error)})") from None


def stock_config(values: dict) -> PreTrainedConfig:
    """Returns the stock model's config, given the values of a dense or a sparse model's config."""
    stock = class_of_type(values["model_type"]).stock_class.config_class
    values = {name: value for name, value in values.items() if name not in CLASS_FIELDS}
    text = {name: value for name, value in values["text_config"].items() if name not in CLASS_FIELDS}
    text_type = values["text_config"].get("model_type")
    if text_type is not None:
        text["model_type"] = text_type.removeprefix(SPARSE)
    if text.get("layer_types"):
        text["layer_types"] = [kind.removeprefix(SPARSE) for kind in text["layer_types"]]
    return stock.from_dict({**values, "text_config": text})


def carried_plan(checkpoint: str | os.PathLike, shape: PreTrainedConfig) -> VisualPlan:
    """Returns a sparse checkpoint's plan for another shape.

    Each layer is the one at its relative depth, with the same shares of units and neurons.

    Raises:
        UserError: the folder holds no sparse checkpoint, or its model type is not supported.
    """
    path = Path(checkpoint) / "config.json"
    given = checked_json(path).get("visual_plan")
    if given is None:
        raise UserError(f"{path}: holds no visual_plan, so it is not a sparse checkpoint")
    plan, source, target = VisualPlan.from_dict(given), shape_of_file(path).text_config, shape.text_config
    return VisualPlan(
        tuple(
            replace(
                layer,
                heads=_scaled_count(layer.heads, source.num_key_value_heads, target.num_key_value_heads),
                ffn=_scaled_count(layer.ffn, source.intermediate_size, target.intermediate_size),
            )
            for layer in plan.at_depth(target.num_hidden_layers).layers
        )
    )


def random_model(shape: PreTrainedConfig, plan: VisualPlan, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Returns a sparse model of this shape with random weights. Raises UserError if the plan does not fit."""
    text = shape.text_config
    plan.check(text.num_hidden_layers, text.num_key_value_heads, text.intermediate_size)
    values = {name: value for name, value in shape.to_dict().items() if name not in CLASS_FIELDS}
    cls = sparse_class(shape)
    config = cls.config_class.from_dict({**values, "visual_plan": plan.to_dict()})
    with torch.device(device):
        return cls._from_config(config, dtype=dtype).eval()


def _scaled_count(units: int | tuple[int, ...] | None, source: int, target: int) -> int | None:
    """Returns as many of `target` units as `units` are of `source`, and at least one if there was one."""
    if units is None:
        return None
    served = num_served(units, source)
    return max(round(served * target / source), 1) if served else 0
