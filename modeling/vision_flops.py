"""What vision towers cost, in multiply-accumulates.

As in visual_flops.py, attention is counted in full and norms are left out.
"""

from collections.abc import Sequence

from transformers import PreTrainedConfig

from .user_error import UserError

CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""Model types of the towers that LLaVAs have, with their number of class tokens."""


def vit_macs(
    *, num_patches: int, class_tokens: int, patch_values: int, hidden_size: int, intermediate_size: int, num_blocks: int
) -> int:
    """Returns the multiply-accumulates of a vision transformer on one picture.

    It embeds patches, then runs blocks of four attention projections and an FFN of two matrices.

    Args:
        patch_values: numbers in a patch, all channels.
        num_blocks: blocks that are counted.
    """
    tokens = num_patches + class_tokens
    block = tokens * (4 * hidden_size**2 + 2 * hidden_size * intermediate_size) + 2 * tokens**2 * hidden_size
    return num_patches * patch_values * hidden_size + num_blocks * block


def num_blocks_read(layers: int | Sequence[int], num_blocks: int) -> int:
    """Returns how many of a tower's blocks run up to the last one whose output is read.

    Args:
        layers: as a LLaVA's `vision_feature_layer`, one layer or several, counted from the end if negative.
        num_blocks: all blocks of the tower.
    """
    layers = [layers] if isinstance(layers, int) else layers
    # hidden_states holds the embedding first, then every block's output.
    return max(layer if layer >= 0 else num_blocks + 1 + layer for layer in layers)


def llava_tower_macs(config: PreTrainedConfig) -> int:
    """Returns the multiply-accumulates of a LLaVA's tower and projector on one picture or tile of the tower's size.

    The tower counts up to the layer that is read.

    Raises:
        UserError: the tower is neither CLIP's (one class token) nor SigLIP's (none).
    """
    tower = config.vision_config
    if tower.model_type not in CLASS_TOKENS:
        raise UserError(f"vision tower: got {tower.model_type!r}, allowed: {', '.join(CLASS_TOKENS)}")
    class_tokens = CLASS_TOKENS[tower.model_type]
    layers = config.vision_feature_layer
    num_patches = (tower.image_size // tower.patch_size) ** 2
    macs = vit_macs(
        num_patches=num_patches,
        class_tokens=class_tokens,
        patch_values=tower.num_channels * tower.patch_size**2,
        hidden_size=tower.hidden_size,
        intermediate_size=tower.intermediate_size,
        num_blocks=num_blocks_read(layers, tower.num_hidden_layers),
    )
    width = config.text_config.hidden_size
    features = tower.hidden_size * (1 if isinstance(layers, int) else len(layers))
    # The strategy "default" drops the first token, whatever it is.
    projected = num_patches + class_tokens - (config.vision_feature_select_strategy == "default")
    return macs + projected * width * (features + width)
