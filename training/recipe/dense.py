"""The recipe of `task: dense`, which trains a small LLaVA from scratch on the embedded world."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from data.shapes.world import WorldSettings
from training.recipe.base import BaseRecipe
from training.schema import Strict


class TinyLlavaSettings(Strict):
    """Sizes of the model. A head is 32 wide in both parts."""

    image_size: int = Field(gt=0)
    """Side of a picture in pixels."""
    patch_size: int = Field(gt=0)
    """Side of a patch in pixels; each patch is one visual token."""
    tower_hidden_size: int = Field(gt=0, multiple_of=32)
    tower_intermediate_size: int = Field(gt=0)
    tower_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0, multiple_of=32)
    intermediate_size: int = Field(gt=0)
    layers: int = Field(gt=0)


class OptimizerSettings(Strict):
    """AdamW over one stage, from a warm-up to a learning rate of nothing (or held, see `lr_schedule`)."""

    split: str
    """Split of the world that is trained on."""
    steps: int = Field(ge=1)
    micro_batch_size: int = Field(ge=1)
    """Pictures per step and process."""
    learning_rate: float = Field(gt=0)
    lr_schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup_steps: int = Field(default=50, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    save_steps: int = Field(default=250, ge=1)
    """A killed run continues from the last multiple of this."""


class PhaseSettings(OptimizerSettings):
    """Questions and answers, for the whole model."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    tower_learning_rate: float = Field(ge=0)
    """Of tower and projector; 0: they stay as they are, and cost no backward pass."""
    word_learning_rate: float = Field(gt=0)
    """Of the word embeddings. Too high, the words leave the visual tokens that the tower's stage has made of them."""
    turns: Literal["independent", "conversation"]
    """independent: each question sees the picture alone; conversation: the questions and answers before it as well."""


class TeacherSettings(Strict):
    """What the teacher is, what it learns from and where it goes."""

    output: Path
    """Folder the finished teacher is copied to; an older teacher there is replaced."""
    model: TinyLlavaSettings
    max_length: int = Field(gt=0)
    """Longest conversation in tokens, visual ones included."""
    world: WorldSettings
    tower: OptimizerSettings
    phases: tuple[PhaseSettings, ...] = Field(min_length=1)
    evaluation_split: str
    evaluation_batch_size: int = Field(ge=1)

    @model_validator(mode="after")
    def _splits_exist(self):
        for split in (self.tower.split, self.evaluation_split, *(phase.split for phase in self.phases)):
            if split not in self.world.splits:
                raise ValueError(f"split {split!r} is not one of teacher.world ({', '.join(self.world.splits)})")
        return self

    @model_validator(mode="after")
    def _names_differ(self):
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError(f"phases: names must differ, got {', '.join(names)}")
        return self


class DenseRecipe(BaseRecipe):
    """Train a dense model from scratch on the embedded world."""

    task: Literal["dense"]
    teacher: TeacherSettings
