"""The `model` section of a recipe."""

from typing import Literal

from training.schema import Strict


class ModelSettings(Strict):
    """The dense model: teacher, and the student's starting point."""

    path: str
    """Folder, or name on the Hugging Face Hub."""
    config: str | None = None
    """JSON of the model's config, for --dry-run where the weights are not at hand."""
    dtype: Literal["float32", "bfloat16"]
    attention: Literal["sdpa", "eager"] = "sdpa"
    """How attention is computed while students are made; eager trains faster on CPUs, where texts are short."""
    trust_remote_code: bool = False
