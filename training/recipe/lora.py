"""The `lora` section of a recipe."""

from pydantic import Field

from training.schema import Strict


class LoraSettings(Strict):
    """LoRA adapters (arXiv 2106.09685) on every projection of the text decoder. All other weights are frozen."""

    rank: int = Field(ge=1, le=65_536)
    """Rank of every adapter."""
    alpha: float = Field(gt=0)
    """Scale of the adapters: their output is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability with which an input value of an adapter is dropped in training."""
