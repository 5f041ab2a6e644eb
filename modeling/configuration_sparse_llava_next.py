"""Configuration of a sparse LLaVA-NeXT. It is LLaVA-NeXT's own with the visual plan that the weights were made for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.dataclasses import strict
from transformers.models.llava_next.configuration_llava_next import LlavaNextConfig
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
    unpad_image,
)

from .configuration_sparse_text import sparse_text_config
from .plan_of_config import check_plan_of_config
from .user_error import UserError
from .vision_flops import CLASS_TOKENS, llava_tower_macs
from .visual_layout import Grid, Images

TEXT_TYPES = ("llama", "mistral", "qwen2")


@strict
class SparseLlavaNextConfig(LlavaNextConfig):
    """LLaVA-NeXT's configuration with a visual plan.

    Attributes:
        visual_plan: the plan's JSON object. None means the dense plan.
    """

    model_type = "sparse_llava_next"

    visual_plan: dict | None = None

    if TYPE_CHECKING:  # a field of the stock configuration
        text_config: Any

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = sparse_text_config(self.text_config or {}, TEXT_TYPES, default="llama")
        super().__post_init__(**kwargs)
        check_plan_of_config(self)


def tile_grid(config: LlavaNextConfig) -> Grid:
    """Returns rows and columns of visual tokens that one tile becomes.

    Raises:
        UserError: a class token is kept, or a visual token is dropped for one. Tiles would then be no grids.
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


def image_grids(config: LlavaNextConfig, height: int, width: int) -> tuple[Grid, ...]:
    """Returns the grids of a picture of height x width pixels.

    They are the whole picture as one tile, then all its tiles as one grid, cut to the picture's proportions.

    Raises:
        UserError: as `tile_grid`.
    """
    rows, columns = tile_grid(config)
    tiles = get_anyres_image_grid_shape((height, width), config.image_grid_pinpoints, config.vision_config.image_size)
    padded = torch.empty(0, tiles[0] * rows, tiles[1] * columns)
    _, cut_rows, cut_columns = unpad_image(padded, (height, width)).shape
    return (rows, columns), (cut_rows, cut_columns)


def picture_size(config: LlavaNextConfig, image: Sequence[Grid]) -> tuple[int, int]:
    """Returns height and width, in pixels, of a picture that becomes these grids. It fills its tokens' patches."""
    rows, columns = image[-1]
    return rows * config.vision_config.patch_size, columns * config.vision_config.patch_size


def num_tiles(config: LlavaNextConfig, image: Sequence[Grid]) -> int:
    """Returns the number of tiles of a picture with these grids, the whole picture included.

    If two resolutions give these grids, it is the number of the smaller one.
    """
    return image_size_to_num_patches(
        picture_size(config, image), config.image_grid_pinpoints, config.vision_config.image_size
    )


def vision_macs(config: LlavaNextConfig, images: Images) -> int:
    """Returns the multiply-accumulates of the tower, up to the layer that is read, and projector for these images'
    tiles.

    Raises:
        UserError: as `llava_tower_macs`.
    """
    return sum(num_tiles(config, image) for image in images) * llava_tower_macs(config)
