"""The recipe of `task: dense`, which trains a small dense LLaVA from scratch on the embedded world."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from data.shapes.scenes import IMAGE_SIZE
from data.shapes.world import WorldSettings
from training.recipe.base import BaseRecipe
from training.schema import AUTO, MayChange, Precision, Strict

OTHER_STAGES = ("world", "tower", "evaluate", "export")
"""Names of the stages of a run beside its phases, which have the phases' names (training/tasks/dense.py)."""


class TinyLlavaSettings(Strict):
    """Sizes of the model: a CLIP vision tower and a Llama decoder. An attention head has 32 values in both."""

    image_size: int = Field(gt=0, le=4_096)
    """Side of a picture in pixels, as the vision tower sees it."""
    patch_size: int = Field(gt=0, le=4_096)
    """Side of a patch in pixels. Each patch becomes one visual token."""
    tower_hidden_size: int = Field(gt=0, le=16_384, multiple_of=32)
    """Hidden size of the vision tower. It has a 32nd as many attention heads."""
    tower_intermediate_size: int = Field(gt=0, le=65_536)
    """FFN neurons in each layer of the vision tower."""
    tower_layers: int = Field(gt=0, le=256)
    """Number of layers of the vision tower."""
    hidden_size: int = Field(gt=0, le=16_384, multiple_of=32)
    """Hidden size of the text decoder. It has a 32nd as many attention heads."""
    intermediate_size: int = Field(gt=0, le=65_536)
    """FFN neurons in each layer of the text decoder."""
    layers: int = Field(gt=0, le=256)
    """Number of layers of the text decoder."""


class OptimizerSettings(Strict):
    """Training with AdamW."""

    steps: int = Field(ge=1)
    """Number of optimizer steps."""
    micro_batch_size: int = Field(ge=1)
    """Pictures per step and process."""
    learning_rate: float = Field(gt=0)
    """The highest learning rate, reached at the end of the warm-up. In a phase it is that of the text decoder."""
    lr_schedule: Literal["cosine", "linear", "constant_with_warmup", "cosine_at_last"] = "cosine"
    """How the learning rate goes on after the warm-up: it falls to 0 (cosine, linear), stays (constant_with_warmup), or
    stays for the first half of the steps and falls to 0 in the second (cosine_at_last)."""
    warmup_steps: int = Field(default=50, ge=0)
    """Number of steps over which the learning rate rises from 0. They are fewer than `steps`."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients with a larger L2 norm than this are scaled down to it."""
    precision: Precision = AUTO
    """Data type of the forward and backward pass. bfloat16 is mixed precision (autocast). auto: bfloat16 where the GPU,
    or without one the CPU, has instructions for it, else float32. A run keeps what it was begun with."""
    save_steps: Annotated[int, MayChange.ALWAYS] = Field(default=250, ge=1)
    """Steps from one checkpoint to the next. A run that was killed continues from its last checkpoint."""

    @model_validator(mode="after")
    def _reaches_its_rate(self):
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps: got {self.warmup_steps}, allowed: fewer than the {self.steps} steps")
        return self


class SplitOptimizerSettings(OptimizerSettings):
    """Training with AdamW on one split of the world."""

    split: str
    """Name of the split of `teacher.world` that is trained on."""


class PhaseSettings(SplitOptimizerSettings):
    """A phase of training on questions and answers. The whole model is trained."""

    name: str = Field(pattern=r"^[a-z0-9_]+$", max_length=100)
    """Name of the phase. No other phase has it, and no other stage: world, tower, evaluate, export."""
    tower_learning_rate: float = Field(ge=0)
    """Highest learning rate of vision tower and projector. At 0 they are not trained, and the steps are faster."""
    word_learning_rate: float = Field(gt=0)
    """Highest learning rate of the word embeddings. If it is too high, the visual tokens no longer fit the words, as
    they were trained to equal sums of word embeddings."""
    turns: Literal["independent", "conversation"]
    """What each question of a conversation may attend to: the picture alone (independent), or also the questions and
    answers before it (conversation)."""


class DenseSettings(Strict):
    """The dense model: its sizes, what it learns from, and where it is written."""

    output: Path
    """Folder that the finished model is copied to. A model that is there already is replaced."""
    model: TinyLlavaSettings
    """Sizes of the model."""
    max_length: int = Field(gt=0)
    """Longest conversation in tokens, visual tokens included. Longer ones are left out."""
    world: WorldSettings
    """The embedded world: pictures and questions that the model is trained and evaluated on."""
    tower: SplitOptimizerSettings
    """First training: the vision tower and the projector learn to name what each patch of a picture shows."""
    phases: tuple[PhaseSettings, ...] = Field(min_length=1)
    """Second training: the whole model learns to answer questions, in one or more phases."""
    evaluation_split: str
    """Name of the split of `teacher.world` whose questions the finished model is asked."""
    evaluation_batch_size: Annotated[int, MayChange.ALWAYS] = Field(ge=1)
    """Questions that are answered together."""

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
        if taken := sorted(set(names) & set(OTHER_STAGES)):
            raise ValueError(f"phases: {', '.join(taken)} is another stage of the run; choose another name")
        return self

    @model_validator(mode="after")
    def _sees_the_world(self):
        model = self.model
        if model.image_size != IMAGE_SIZE or IMAGE_SIZE % model.patch_size:
            raise ValueError(
                f"model: got pictures of {model.image_size} and patches of {model.patch_size} pixels, allowed: "
                f"image_size {IMAGE_SIZE}, as the world has it, and a patch_size that divides it"
            )
        return self

    @model_validator(mode="after")
    def _replaces_a_model_alone(self):
        check_output(self.output)
        return self


def check_output(output: Path) -> None:
    """Raises ValueError if a finished model cannot be written to `output`: something is there that is no model."""
    if not output.name:
        raise ValueError(f"output: got {str(output)!r}, allowed: a folder that has a name")
    if os.path.islink(output):
        raise ValueError(f"output: {str(output)!r} is a link, and a model's folder would replace it; name another")
    if os.path.exists(output) and not os.path.isfile(output / "config.json"):
        raise ValueError(f"output: {str(output)!r} is there and is no model, which alone would be replaced")


def check_apart(output: Path, *others: str | os.PathLike) -> None:
    """Raises ValueError if a finished model would be written over, into or around one of these folders."""
    for other in others:
        ends = [Path(os.path.realpath(folder)) for folder in (output, other)]
        if ends[0].is_relative_to(ends[1]) or ends[1].is_relative_to(ends[0]):
            raise ValueError(f"output: got {str(output)!r}, allowed: a folder apart from {str(other)!r}")


class DenseRecipe(BaseRecipe):
    """Train a dense model from scratch on the embedded world."""

    task: Literal["dense"]
    """What the run does: it trains a small dense model from scratch."""
    teacher: DenseSettings
    """The dense model. Other recipes can use it as their teacher."""

    @model_validator(mode="after")
    def _is_written_elsewhere(self):
        check_apart(self.teacher.output, self.folder)
        return self

    def global_batches(self, processes: int) -> dict[str, int]:
        """Returns the number of samples in an optimizer step, by the section that trains."""
        sections = {"tower": self.teacher.tower, **{f"phase {phase.name}": phase for phase in self.teacher.phases}}
        return {name: section.micro_batch_size * processes for name, section in sections.items()}
