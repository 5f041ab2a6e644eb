"""Configuration of a sparse Qwen2-VL. It is Qwen2-VL's own with the visual plan that the weights were made for."""

import math
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig, Qwen2VLTextConfig

from .plan_of_config import check_plan_of_config
from .visual_layout import Grid, Images


@strict
class SparseQwen2VLTextConfig(Qwen2VLTextConfig):
    """The text model's configuration under another model type.

    The stock class takes a text model of any type for its own, and would run a sparse checkpoint dense. But it does not
    know the layer types that this config is written with, so it refuses the checkpoint.
    """

    model_type = "sparse_qwen2_vl_text"

    if TYPE_CHECKING:  # a field of the stock configuration
        layer_types: list[str]

    def __post_init__(self, **kwargs: Any) -> None:
        if self.layer_types is not None:
            self.layer_types = [kind.removeprefix("sparse_") for kind in self.layer_types]
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict:
        values = super().to_dict()
        return {**values, "layer_types": [f"sparse_{kind}" for kind in self.layer_types]}


@strict
class SparseQwen2VLConfig(Qwen2VLConfig):
    """Qwen2-VL's configuration with a visual plan.

    Attributes:
        visual_plan: the plan's JSON object. None means the dense plan.
        min_pixels: a picture of fewer pixels is enlarged to about as many. None means that none is.
        max_pixels: a picture of more pixels is reduced to about as many. None means that none is.
    """

    model_type = "sparse_qwen2_vl"

    visual_plan: dict | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None

    if TYPE_CHECKING:  # a field of the stock configuration
        text_config: Any

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is not None:
            self.text_config = sparse_text_config(self.text_config)
        super().__post_init__(**kwargs)
        self.text_config = sparse_text_config(self.text_config)  # the stock one, if none was given
        check_plan_of_config(self)


def sparse_text_config(given: dict | PreTrainedConfig) -> SparseQwen2VLTextConfig:
    """Returns the sparse config of a text model, given its values, its stock config or its sparse config."""
    if isinstance(given, SparseQwen2VLTextConfig):
        return given
    values = given if isinstance(given, dict) else given.to_dict()
    return SparseQwen2VLTextConfig(**{**values, "model_type": SparseQwen2VLTextConfig.model_type})


def image_grids(config: Qwen2VLConfig, height: int, width: int) -> tuple[Grid, ...]:
    """Returns the one grid of a picture of height x width pixels, at its own resolution within the config's limits.

    The image processor scales both sides alike, and rounds down to whole tokens where it reduces, up where it enlarges.
    """
    side = config.vision_config.patch_size * config.vision_config.spatial_merge_size
    least, most = (getattr(config, name, None) for name in ("min_pixels", "max_pixels"))  # absent in a stock config
    rows, columns = round(height / side), round(width / side)
    if most is not None and rows * columns * side**2 > most:
        scale = math.sqrt(height * width / most)
        rows, columns = math.floor(height / scale / side), math.floor(width / scale / side)
    elif least is not None and rows * columns * side**2 < least:
        scale = math.sqrt(least / (height * width))
        rows, columns = math.ceil(height * scale / side), math.ceil(width * scale / side)
    return ((max(rows, 1), max(columns, 1)),)


def vision_macs(config: Qwen2VLConfig, images: Images) -> int:
    """Returns the multiply-accumulates of the vision tower and its merger. Patches see those of their own frame."""
    tower = config.vision_config
    merged, width = tower.spatial_merge_size**2, tower.embed_dim
    patch_values = tower.in_channels * tower.temporal_patch_size * tower.patch_size**2
    per_patch = patch_values * width + tower.depth * (4 + 2 * tower.mlp_ratio) * width**2
    per_token = merged * per_patch + (merged * width) ** 2 + merged * width * tower.hidden_size
    tokens = [rows * columns for image in images for rows, columns in image]
    return sum(size * per_token + tower.depth * 2 * (size * merged) ** 2 * width for size in tokens)
