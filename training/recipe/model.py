"""The `model` section of a recipe."""

from typing import Annotated, Literal

from training.schema import MayChange, Strict


class ModelSettings(Strict):
    """The dense model. It is the teacher, and students start from its weights."""

    path: Annotated[str, MayChange.WITH_EQUAL_CONTENT]
    """Folder of the dense model, or its name on the Hugging Face Hub."""
    config: str | None = None
    """JSON file of the model's config, for --dry-run without the weights. null: the config at `path` is read."""
    dtype: Literal["float32", "bfloat16"]
    """Data type that the weights are loaded in, for the dense model and the students."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """How the text decoder computes attention while plans are found and students trained. eager is
    faster on a CPU with short texts."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model or its processor may run."""
