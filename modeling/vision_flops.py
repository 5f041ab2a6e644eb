"""What vision towers cost, in multiply-accumulates.

As in visual_flops.py, attention is counted in full and norms are left out.
"""

from collections.abc import Sequence

from transformers import PreTrainedConfig

from .user_error import UserError

CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0, "dinov2": 1}
"""Model types of the towers that LLaVAs have, with their number of class tokens."""


def vit_macs(
    *,
    num_patches: int,
    class_tokens: int,
    patch_values: int,
    hidden_size: int,
    intermediate_size: int,
    num_blocks: int,
    ffn_matrices: int = 2,
) -> int:
    """Returns the multiply-accumulates of a vision transformer on one picture.

    It embeds patches, then runs blocks of four attention projections and an FFN.

    Args:
        patch_values: numbers in a patch, all channels.
        num_blocks: blocks that are counted.
        ffn_matrices: those of an FFN, each of hidden_size x intermediate_size. A gated one has three.
    """
    tokens = num_patches + class_tokens
    ffn = ffn_matrices * hidden_size * intermediate_size
    block = tokens * (4 * hidden_size**2 + ffn) + 2 * tokens**2 * hidden_size
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


def _ffn(tower: PreTrainedConfig) -> tuple[int, int]:
    """Returns how many matrices an FFN of a LLaVA's tower has, and its neurons."""
    if tower.model_type != "dinov2":
        return 2, tower.intermediate_size
    neurons = int(tower.hidden_size * tower.mlp_ratio)
    if not tower.use_swiglu_ffn:
        return 2, neurons
    return 3, (int(neurons * 2 / 3) + 7) // 8 * 8  # as transformers rounds it


def llava_tower_macs(config: PreTrainedConfig) -> int:
    """Returns the multiply-accumulates of a LLaVA's tower and projector on one picture or tile of the tower's size.

    The tower counts up to the layer that is read.

    Raises:
        UserError: the tower is none of `CLASS_TOKENS`.
    """
    tower = config.vision_config
    if tower.model_type not in CLASS_TOKENS:
        raise UserError(f"vision tower: got {tower.model_type!r}, allowed: {', '.join(CLASS_TOKENS)}")
    class_tokens = CLASS_TOKENS[tower.model_type]
    layers = config.vision_feature_layer
    num_patches = (tower.image_size // tower.patch_size) ** 2
    ffn_matrices, intermediate_size = _ffn(tower)
    macs = vit_macs(
        num_patches=num_patches,
        class_tokens=class_tokens,
        patch_values=tower.num_channels * tower.patch_size**2,
        hidden_size=tower.hidden_size,
        intermediate_size=intermediate_size,
        ffn_matrices=ffn_matrices,
        num_blocks=num_blocks_read(layers, tower.num_hidden_layers),
    )
    width = config.text_config.hidden_size
    features = tower.hidden_size * (1 if isinstance(layers, int) else len(layers))
    # The strategy "default" drops the first token, whatever it is.
    projected = num_patches + class_tokens - (config.vision_feature_select_strategy == "default")
    return macs + projected * width * (features + width)
