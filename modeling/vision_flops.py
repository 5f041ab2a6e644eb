"""What vision towers cost: multiply-accumulates, attention in full, norms left out, as in visual_flops.py."""

from collections.abc import Sequence

from transformers import PreTrainedConfig

from .user_error import UserError

CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""Of the towers that LLaVAs have."""


def vit_macs(
    *, num_patches: int, class_tokens: int, patch_values: int, hidden_size: int, intermediate_size: int, num_blocks: int
) -> int:
    """Of a vision transformer on one picture: patch embedding, then blocks of four projections and an FFN of two matrices.

    Args:
        patch_values: numbers in a patch, all channels.
    """
    tokens = num_patches + class_tokens
    block = tokens * (4 * hidden_size**2 + 2 * hidden_size * intermediate_size) + 2 * tokens**2 * hidden_size
    return num_patches * patch_values * hidden_size + num_blocks * block


def blocks_read(layers: int | Sequence[int], num_blocks: int) -> int:
    """How many of a LLaVA's tower's blocks count, up to the last whose output is read; `layers` as its vision_feature_layer."""
    layers = [layers] if isinstance(layers, int) else layers
    # hidden_states holds the embedding first, then every block's output.
    return max(layer if layer >= 0 else num_blocks + 1 + layer for layer in layers)


def llava_tower_macs(config: PreTrainedConfig) -> int:
    """Of a LLaVA's tower, up to the layer that is read, and its projector, on one picture or tile of the tower's size.

    Raises:
        UserError: a tower other than CLIP's (one class token) or SigLIP's (none).
    """
    tower = config.vision_config
    if tower.model_type not in CLASS_TOKENS:
        raise UserError(f"vision tower: got {tower.model_type!r}, allowed: {', '.join(CLASS_TOKENS)}")
    class_tokens = CLASS_TOKENS[tower.model_type]
    read = (
        [config.vision_feature_layer]
        if isinstance(config.vision_feature_layer, int)
        else list(config.vision_feature_layer)
    )
    num_patches = (tower.image_size // tower.patch_size) ** 2
    macs = vit_macs(
        num_patches=num_patches,
        class_tokens=class_tokens,
        patch_values=tower.num_channels * tower.patch_size**2,
        hidden_size=tower.hidden_size,
        intermediate_size=tower.intermediate_size,
        num_blocks=blocks_read(config.vision_feature_layer, tower.num_hidden_layers),
    )
    width = config.text_config.hidden_size
    # The strategy "default" drops the first token, whatever it is.
    projected = num_patches + class_tokens - (config.vision_feature_select_strategy == "default")
    return macs + projected * width * (tower.hidden_size * len(read) + width)
