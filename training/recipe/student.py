"""The recipe of `task: sparsify`, and what every recipe has that turns a dense model into sparse students."""

from typing import Literal

from pydantic import Field, model_validator

from training.recipe.base import NAME, BaseRecipe
from training.recipe.data import DataSettings
from training.recipe.distillation import DistillationSettings
from training.recipe.gates import GateSettings, PlannerSettings
from training.recipe.lora import LoraSettings
from training.recipe.model import ModelSettings
from training.recipe.training import TrainingSettings
from training.schema import Strict

STUDENT = "student"
"""The name of the recipe's own student among the models compared."""


class CalibrationSettings(Strict):
    """The recipe's `calibration` section."""

    num_samples: int = Field(ge=1)
    """Training samples the statistics and the planners' evaluations are taken over."""
    batch_size: int = Field(ge=1)


class CompareSettings(Strict):
    """One more row of the report's table: another plan, or the student's own (`plan: null`), distilled or not."""

    name: str = Field(pattern=NAME)
    plan: PlannerSettings | None = None
    distil: bool
    seed: int | None = Field(default=None, ge=0)
    """Of gates and distillation; null: the recipe's."""


class EvaluationSettings(Strict):
    """How models are asked."""

    batch_size: int = Field(ge=1)
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Longest answer; null: as each family's longest true answer asks for."""


class StudentRecipe(BaseRecipe):
    """What every run has that turns a dense model into sparse students.

    Where training is counted in steps, all students get the same number: those in which a plan is learned are taken off its
    student's distillation. Counted in epochs, they are not.
    """

    model: ModelSettings
    data: DataSettings
    calibration: CalibrationSettings
    lora: LoraSettings | None
    """null: full fine-tuning of text decoder and projector; the teacher is then a second model."""
    distillation: DistillationSettings
    training: TrainingSettings
    evaluation: EvaluationSettings

    @model_validator(mode="after")
    def _kept_answers_stay_true(self):
        if self.distillation.keep_answers and self.lora is None:
            raise ValueError(
                "distillation.keep_answers goes with lora: full fine-tuning changes the image features it keeps"
            )
        return self

    @model_validator(mode="after")
    def _steps_are_left(self):
        max_steps = self.training.max_steps
        for student in self.students:
            if max_steps is not None and isinstance(student.plan, GateSettings) and student.plan.steps >= max_steps:
                raise ValueError(
                    f"student {student.name}: plan.steps: got {student.plan.steps}, allowed: less than training.max_steps ({max_steps}), "
                    "of which they are a part"
                )
        return self

    @property
    def students(self) -> tuple[CompareSettings, ...]:
        """Every student of the run, each with its plan's settings."""
        raise NotImplementedError

    def training_of(self, student: CompareSettings) -> TrainingSettings:
        """How the student is distilled."""
        if self.training.max_steps is None or not isinstance(student.plan, GateSettings):
            return self.training
        return self.training.model_copy(update={"max_steps": self.training.max_steps - student.plan.steps})


class SparsifyRecipe(StudentRecipe):
    """Find a plan for a dense model, distil the student under it, export, evaluate, report."""

    task: Literal["sparsify"]
    plan: PlannerSettings
    compare: tuple[CompareSettings, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self):
        names = [STUDENT, *(row.name for row in self.compare)]
        if len(set(names)) < len(names):
            raise ValueError(
                f"compare: names must differ from each other and from {STUDENT!r}, got {', '.join(names[1:])}"
            )
        return self

    @property
    def students(self) -> tuple[CompareSettings, ...]:
        """The recipe's own first, then those it is compared with."""
        own = CompareSettings(name=STUDENT, plan=self.plan, distil=True)
        return (own, *(row.model_copy(update={"plan": row.plan or self.plan}) for row in self.compare))
