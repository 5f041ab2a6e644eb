"""The recipe of `task: instruct`, which teaches a LLaVA of pretrained parts to answer questions about pictures."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from training.recipe.base import BaseRecipe
from training.recipe.data import SourceSettings
from training.recipe.dense import OptimizerSettings, check_apart, check_output
from training.recipe.lora import LoraSettings
from training.schema import FROM_ANYWHERE, MayChange, Strict


class PartsSettings(Strict):
    """The model that is taught, and where it is written."""

    path: Annotated[str, FROM_ANYWHERE, MayChange.WITH_EQUAL_CONTENT]
    """Folder of a dense LLaVA, or its name on the Hugging Face Hub. Its projector may have random weights."""
    output: Path
    """Folder that the finished model is written to. A model that is there already is replaced."""

    @model_validator(mode="after")
    def _replaces_a_model_alone(self):
        check_output(self.output)
        return self


class PicturesSettings(Strict):
    """The pictures and questions that the model is taught and asked. A row has one picture."""

    train: SourceSettings
    """The rows that are trained on. The questions of a row are independent of one another."""
    things: str
    """Column of `train` that lists the things in a picture: objects with `name`, and `x`, `y`, `width` and `height` in
    pixels."""
    evaluation: SourceSettings
    """Rows that the finished model is asked."""
    max_length: int = Field(gt=0)
    """Longest row in tokens, visual tokens included. Longer ones are left out."""

    @field_validator("train", "evaluation")
    @classmethod
    def _takes_all_rows(cls, source: SourceSettings) -> SourceSettings:
        if source.is_of_world:
            raise ValueError("give path (files) or hub (a data set on the Hub); this task has no embedded world")
        given = [name for name in ("streaming", "weight", "num_samples") if getattr(source, name)]
        if given:
            raise ValueError(f"{', '.join(given)}: not in this task; every row is read once in an epoch")
        return source


class NamingSettings(OptimizerSettings):
    """First training: the projector alone learns to name what each patch shows, and where the patch is."""

    place_weight: float = Field(default=0.6, ge=0, le=10)
    """Length of a patch's place in its visual token, beside that of a thing's name, which is 1."""


class TuningSettings(OptimizerSettings):
    """Second training: projector and LoRA learn to answer questions, each by the picture alone."""

    projector_learning_rate: float = Field(gt=0)
    """Highest learning rate of the projector."""
    answer_weights: dict[str, Annotated[float, Field(gt=0, le=1_000)]] = Field(default={}, max_length=1_000)
    """Answer -> how much its first token counts in the loss. Other tokens count 1. It helps where a short answer, such
    as yes or no, is drowned by long ones."""


class InstructRecipe(BaseRecipe):
    """Teach a dense LLaVA of pretrained parts to answer questions about pictures (arXiv 2304.08485)."""

    task: Literal["instruct"]
    """What the run does: it trains projector and LoRA of a dense model whose vision tower stays as it is."""
    model: PartsSettings
    """The model that is taught."""
    data: PicturesSettings
    """What it learns from."""
    naming: NamingSettings
    """First training, of the projector."""
    lora: LoraSettings
    """The adapters of the text decoder."""
    tuning: TuningSettings
    """Second training, of projector and adapters."""
    evaluation_batch_size: Annotated[int, MayChange.ALWAYS] = Field(ge=1)
    """Questions that are answered together."""

    @model_validator(mode="after")
    def _is_written_elsewhere(self):
        check_apart(self.model.output, self.folder, self.model.path)
        return self

    def global_batches(self, processes: int) -> dict[str, int]:
        """Returns the number of pictures in an optimizer step, by the section that trains."""
        sections = {"naming": self.naming, "tuning": self.tuning}
        return {name: section.micro_batch_size * processes for name, section in sections.items()}
