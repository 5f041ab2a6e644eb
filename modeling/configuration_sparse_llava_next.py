"""Configuration of a sparse LLaVA-NeXT: LLaVA-NeXT's own, and the visual plan that its weights were made for."""

from collections.abc import Sequence

import torch
from huggingface_hub.dataclasses import strict
from transformers.models.llava_next.configuration_llava_next import LlavaNextConfig
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
    unpad_image,
)

from .configuration_sparse_text import sparse_text_config
from .user_error import UserError
from .vision_flops import CLASS_TOKENS, llava_tower_macs
from .visual_layout import Images

TEXT_TYPES = ("llama", "mistral", "qwen2")


@strict
class SparseLlavaNextConfig(LlavaNextConfig):
    """`visual_plan` is the plan's JSON form; None is the dense plan."""

    model_type = "sparse_llava_next"

    visual_plan: dict | None = None

    def __post_init__(self, **kwargs):
        if self.text_config is not None:
            self.text_config = sparse_text_config(self.text_config, TEXT_TYPES, default="llama")
        super().__post_init__(**kwargs)


def tile_grid(config: LlavaNextConfig) -> tuple[int, int]:
    """Rows and columns of visual tokens that one tile becomes.

    Raises:
        UserError: a class token that is kept, or a visual token that is dropped for one: tiles would be no grids.
    """
    tower, strategy = config.vision_config, config.vision_feature_select_strategy
    class_tokens = CLASS_TOKENS.get(tower.model_type)
    if class_tokens is not None and class_tokens != (strategy == "default"):
        allowed = "default" if class_tokens else "full"
        raise UserError(
            f"vision_feature_select_strategy: got {strategy!r}, allowed with a {tower.model_type!r} tower: {allowed!r}"
        )
    side = tower.image_size // tower.patch_size
    return side, side


def image_grids(config: LlavaNextConfig, height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Grids, in (rows, columns) of visual tokens, of a picture of height x width pixels: the whole picture as one tile, then
    all its tiles as one grid, cut to the picture's proportions.

    Raises:
        UserError: as `tile_grid`.
    """
    rows, columns = tile_grid(config)
    tiles = get_anyres_image_grid_shape((height, width), config.image_grid_pinpoints, config.vision_config.image_size)
    padded = torch.empty(0, tiles[0] * rows, tiles[1] * columns)
    return (rows, columns), tuple(unpad_image(padded, (height, width)).shape[1:])


def picture_size(config: LlavaNextConfig, image: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Height and width, in pixels, of a picture that becomes these grids: one that fills its tokens' patches."""
    rows, columns = image[-1]
    return rows * config.vision_config.patch_size, columns * config.vision_config.patch_size


def num_tiles(config: LlavaNextConfig, image: Sequence[tuple[int, int]]) -> int:
    """Tiles of a picture with these grids, the whole one included; where two resolutions give these grids, the smaller's."""
    return image_size_to_num_patches(
        picture_size(config, image), config.image_grid_pinpoints, config.vision_config.image_size
    )


def vision_macs(config: LlavaNextConfig, images: Images) -> int:
    """Multiply-accumulates of tower, up to the layer that is read, and projector for the tiles of these images.

    Raises:
        UserError: as `llava_tower_macs`.
    """
    return sum(num_tiles(config, image) for image in images) * llava_tower_macs(config)
