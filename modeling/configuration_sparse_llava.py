"""Configuration of a sparse LLaVA. It is LLaVA's own with the visual plan that the weights were made for."""

from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers.models.llava.configuration_llava import LlavaConfig

from .configuration_sparse_text import sparse_text_config
from .plan_of_config import check_plan_of_config
from .user_error import UserError
from .vision_flops import llava_tower_macs
from .visual_layout import Grid, Images

TEXT_TYPES = ("llama", "mistral", "qwen2")


@strict
class SparseLlavaConfig(LlavaConfig):
    """LLaVA's configuration with a visual plan.

    Attributes:
        visual_plan: the plan's JSON object. None means the dense plan.
    """

    model_type = "sparse_llava"

    visual_plan: dict | None = None

    if TYPE_CHECKING:  # a field of the stock configuration
        text_config: Any

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = sparse_text_config(self.text_config or {}, TEXT_TYPES, default="llama")
        super().__post_init__(**kwargs)  # takes a config object as it is
        check_plan_of_config(self)


def image_grids(config: LlavaConfig, height: int = 0, width: int = 0) -> tuple[Grid, ...]:
    """Returns the grids of a picture of height x width pixels. It is one grid, whatever the picture's size.

    Raises:
        UserError: the class token is kept among the visual tokens. It has no place in the grid.
    """
    if config.vision_feature_select_strategy != "default":
        raise UserError(
            f"vision_feature_select_strategy: got '{config.vision_feature_select_strategy}', allowed: 'default' "
            "(the class token has no place in the image grid)"
        )
    side = config.vision_config.image_size // config.vision_config.patch_size
    return ((side, side),)


def vision_macs(config: LlavaConfig, images: Images) -> int:
    """Returns the multiply-accumulates of the tower, up to the layer that is read, and projector for these images.

    Raises:
        UserError: as `llava_tower_macs`.
    """
    return len(images) * llava_tower_macs(config)
