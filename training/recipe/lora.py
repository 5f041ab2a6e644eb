"""The `lora` section of a recipe."""

from pydantic import Field

from training.schema import Strict


class LoraSettings(Strict):
    """Adapters on every projection of the text decoder."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
