"""Configuration of a sparse InternVL. It is InternVL's own with the visual plan that the weights were made for."""

from itertools import product
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers.models.internvl.configuration_internvl import InternVLConfig

from .configuration_sparse_text import sparse_text_config
from .plan_of_config import check_plan_of_config
from .vision_flops import vit_macs
from .visual_layout import Grid, Images

TEXT_TYPES = ("llama", "phi3", "qwen2")


@strict
class SparseInternVLConfig(InternVLConfig):
    """InternVL's configuration with a visual plan.

    Attributes:
        visual_plan: the plan's JSON object. None means the dense plan.
        max_tiles: the most tiles that a picture is cut into, 12 as published (arXiv 2404.16821, section 3.3).
    """

    model_type = "sparse_internvl"

    visual_plan: dict | None = None
    max_tiles: int = 12

    if TYPE_CHECKING:  # a field of the stock configuration
        text_config: Any

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = sparse_text_config(self.text_config or {}, TEXT_TYPES, default="qwen2")
        super().__post_init__(**kwargs)
        check_plan_of_config(self)


def tile_grid(config: InternVLConfig) -> Grid:
    """Returns rows and columns of visual tokens that one tile becomes, after pixel shuffle."""
    tower = config.vision_config
    rows, columns = (
        round(size // patch * config.downsample_ratio)
        for size, patch in zip(tower.image_size, tower.patch_size, strict=True)
    )
    return rows, columns


def image_grids(config: InternVLConfig, height: int, width: int) -> tuple[Grid, ...]:
    """Returns the grids of a picture of height x width pixels: its tiles and, if there are several, the thumbnail.

    Tiles are laid out in the proportions nearest to the picture's. Of equally near layouts, a larger one is taken if
    the picture fills more than half of its tiles.
    """
    tile_height, tile_width = config.vision_config.image_size
    most = getattr(config, "max_tiles", SparseInternVLConfig.max_tiles)  # a stock config may not say it
    layouts = sorted(
        (pair for pair in product(range(1, most + 1), repeat=2) if pair[0] * pair[1] <= most),
        key=lambda pair: pair[0] * pair[1],
    )
    best, nearest = (1, 1), float("inf")
    for rows, columns in layouts:
        distance = abs(width / height - columns / rows)
        larger = height * width > 0.5 * rows * columns * tile_height * tile_width
        if distance < nearest or (distance == nearest and larger):
            best, nearest = (rows, columns), distance
    num_tiles = best[0] * best[1]
    return (tile_grid(config),) * (num_tiles + 1 if num_tiles > 1 else 1)


def vision_macs(config: InternVLConfig, images: Images) -> int:
    """Returns the multiply-accumulates of tower and projector for the tiles of these images."""
    tower = config.vision_config
    num_patches = (tower.image_size[0] // tower.patch_size[0]) * (tower.image_size[1] // tower.patch_size[1])
    macs = vit_macs(
        num_patches=num_patches,
        class_tokens=1,
        patch_values=tower.num_channels * tower.patch_size[0] * tower.patch_size[1],
        hidden_size=tower.hidden_size,
        intermediate_size=tower.intermediate_size,
        num_blocks=tower.num_hidden_layers,  # all of them run, whichever is read
    )
    rows, columns = tile_grid(config)
    width = config.text_config.hidden_size
    shuffled = round(tower.hidden_size / config.downsample_ratio**2)
    return sum(map(len, images)) * (macs + rows * columns * width * (shuffled + width))
