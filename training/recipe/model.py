"""The `model` section of a recipe."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from training.schema import FROM_ANYWHERE, MayChange, Strict


class ModelSettings(Strict):
    """The model that students start from: a dense model, or a sparse checkpoint that is worked on further.

    A dense model is the teacher, too. A sparse checkpoint's teacher is `teacher`, or its own weights under the full
    plan.
    """

    path: Annotated[str, FROM_ANYWHERE, MayChange.WITH_EQUAL_CONTENT]
    """Folder of the dense model or the sparse checkpoint, or its name on the Hugging Face Hub. Units and neurons of
    plans are counted in the order of its weights."""
    teacher: Annotated[str | None, FROM_ANYWHERE, MayChange.WITH_EQUAL_CONTENT] = None
    """Folder or Hub name of the dense model that teaches, and that students are compared with, where `path` is a sparse
    checkpoint. It has the checkpoint's sizes and vocabulary. null: the teacher is the checkpoint's own weights under
    the full plan."""
    config: Annotated[str | None, FROM_ANYWHERE] = None
    """JSON file of the model's config, for --dry-run without the weights. null: the config at `path` is read."""
    dtype: Literal["float32", "bfloat16"]
    """Data type that the weights are loaded in, for the dense model and the students."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """How the text decoder computes attention while plans are found and students trained. eager is
    faster on a CPU with short texts."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model or its processor may run."""
    min_pixels: int | None = Field(default=None, ge=1, le=64_000_000)
    """A picture, or a frame of a video, of fewer pixels is enlarged to about as many, for Qwen2-VL. null: as the
    checkpoint says."""
    max_pixels: int | None = Field(default=None, ge=1, le=64_000_000)
    """A picture, or a frame of a video, of more pixels is reduced to about as many, for Qwen2-VL. null: as the
    checkpoint says."""
    max_tiles: int | None = Field(default=None, ge=1, le=64)
    """The most tiles that a picture is cut into, for InternVL and LLaVA-NeXT. The whole picture beside them is not
    counted. null: as the checkpoint says."""
    max_frames: int | None = Field(default=None, ge=2, le=768)
    """The most frames of a video that are seen, evenly spaced, for Qwen2-VL. null: as the checkpoint says, else 768."""
    frames_per_second: float | None = Field(default=None, gt=0, le=60)
    """How many frames of each second of a video are seen, for Qwen2-VL, up to `max_frames` and at least 4. null: as the
    checkpoint says, else 2."""
    max_frame_pixels: int | None = Field(default=None, ge=1, le=64_000_000)
    """A frame of a video of more pixels is reduced to about as many, for Qwen2-VL. null: as `max_pixels`."""

    @property
    def of_teacher(self) -> "ModelSettings":
        """The same settings of the dense model that teaches."""
        return self.model_copy(update={"path": self.teacher or self.path, "teacher": None})

    @model_validator(mode="after")
    def _in_order(self) -> "ModelSettings":
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels: got {self.min_pixels}, allowed: up to max_pixels, which is {self.max_pixels}"
            )
        return self
