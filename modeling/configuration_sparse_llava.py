"""Configuration of a sparse LLaVA: LLaVA's own, and the visual plan that its weights were made for."""

from huggingface_hub.dataclasses import strict
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llava.configuration_llava import LlavaConfig


@strict
class SparseLlamaConfig(LlamaConfig):
    """Llama's own, under another model type.

    Given a foreign `model_type`, the stock LLaVA class only warns and would run a sparse checkpoint dense. But it resolves
    its text model by type, and this one it does not know: so it refuses.
    """

    model_type = "sparse_llama"


@strict
class SparseLlavaConfig(LlavaConfig):
    """`visual_plan` is the plan's JSON form; None is the dense plan."""

    model_type = "sparse_llava"

    visual_plan: dict | None = None

    def __post_init__(self, **kwargs):
        text = self.text_config
        if text is not None and not isinstance(text, SparseLlamaConfig):
            self.text_config = SparseLlamaConfig(**(text if isinstance(text, dict) else text.to_dict()))
        super().__post_init__(**kwargs)  # takes a config object as it is


def image_grid(config: LlavaConfig) -> tuple[int, int]:
    """Rows and columns of visual tokens that one image becomes.

    Raises:
        ValueError: the class token is kept among the visual tokens: it has no place in the grid.
    """
    if config.vision_feature_select_strategy != "default":
        raise ValueError(
            f"vision_feature_select_strategy: got '{config.vision_feature_select_strategy}', allowed: 'default' "
            "(the class token has no place in the image grid)"
        )
    side = config.vision_config.image_size // config.vision_config.patch_size
    return side, side
