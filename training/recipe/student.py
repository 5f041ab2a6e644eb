"""The recipe of `task: sparsify`, and the sections of every recipe that turns a dense model into sparse students."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data.sources.settings import Name, Seed
from training.recipe.base import BaseRecipe
from training.recipe.data import DataSettings
from training.recipe.distillation import DistillationSettings
from training.recipe.gates import GateSettings
from training.recipe.lora import LoraSettings
from training.recipe.model import ModelSettings
from training.recipe.publish import PublishSettings
from training.recipe.race import PlannerSettings, RaceSettings
from training.recipe.training import TrainingSettings
from training.schema import MayChange, Strict

STUDENT = "student"
"""Name of the student that the recipe's own `plan` gives, among the models that are compared."""
TAKEN = (STUDENT, "teacher", "grey", "dense", "kept")
"""Names that no compared student may have: others have them in the report's table or in the run's folder."""


class CalibrationSettings(Strict):
    """How many samples of `data.calibration` plans are found on."""

    num_samples: int = Field(ge=1)
    """Number of samples on which the dense model's statistics are taken and plans are tried."""
    batch_size: Annotated[int, MayChange.ALWAYS] = Field(ge=1)
    """Samples in one forward pass. It does not change the result."""


class ValidationSettings(Strict):
    """Held-out samples, on which students and gates are looked at while they are trained.

    They are drawn from `data.train`, and no student is trained on them. Their pictures may be in other samples that are
    trained on. Plans may be found on them, if `data.calibration` reads the same file.
    """

    num_samples: int = Field(ge=1)
    """Number of samples that are held out."""
    steps: Annotated[int, MayChange.ALWAYS] = Field(ge=1)
    """Optimizer steps from one look at them to the next. There is one after the last step, too."""


class CompareSettings(Strict):
    """One more student, which gives one more row in the report's table."""

    name: Name
    """Name of the student in the report and in the run's folder."""
    plan: PlannerSettings | None = None
    """How its plan is found. null: it has the plan of the recipe's own student."""
    distil: bool
    """Whether it is distilled. If not, it is the dense model under the plan, without any training."""
    seed: Seed | None = None
    """Seed of its training, and of its gates if its plan is learned. null: the recipe's `seed`."""


class EvaluationSettings(Strict):
    """How models are asked the questions of `data.evaluation`."""

    batch_size: Annotated[int, MayChange.ALWAYS] = Field(ge=1)
    """Questions that are answered together."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Longest answer that a model may generate, in tokens. null: the benchmark's own limit. Rows of one's own have a
    limit for each family of questions, taken from its longest true answer."""


class StudentRecipe(BaseRecipe):
    """The sections that every recipe has which turns a dense model into sparse students.

    If `training` counts in steps, all students are trained equally long. The steps in which a student's plan is learned
    are taken off its distillation. If `training` counts in epochs, they are not.
    """

    model: ModelSettings
    """The model that students start from, and their teacher."""
    data: DataSettings
    """What is trained, calibrated and evaluated on."""
    calibration: CalibrationSettings
    """How much of the calibration data is used to find plans."""
    validation: ValidationSettings | None = None
    """Held-out samples on which loss and agreement with the teacher are logged during training. null: none."""
    lora: LoraSettings | None
    """LoRA adapters that students are trained with. null: all weights of text decoder and projector are trained, and
    the teacher is a second model in memory."""
    distillation: DistillationSettings
    """The losses."""
    training: TrainingSettings
    """How students are optimised."""
    evaluation: EvaluationSettings
    """How models are evaluated."""

    @model_validator(mode="after")
    def _updates_are_not_rounded_away(self):
        if self.lora is None and self.model.dtype == "bfloat16" and self.training.deepspeed is None:
            raise ValueError(
                "lora: got null with model.dtype bfloat16 and without training.deepspeed, so that no fp32 weights are "
                "kept and updates round away; allowed: a DeepSpeed config, or model.dtype float32"
            )
        return self

    @model_validator(mode="after")
    def _streams_are_read_once(self):
        training = self.training
        known_beforehand = {
            "validation": self.validation is not None,
            "distillation.keep_answers": self.distillation.keep_answers,
            "training.num_epochs": training.num_epochs is not None,
            "training.group_by_modality_length": training.group_by_modality_length,
            "training.num_workers above 1": training.num_workers > 1,
        }
        refused = [setting for setting, given in known_beforehand.items() if given]
        if self.data.is_streamed and refused:
            raise ValueError(
                f"{refused[0]} does not go with streaming in data.train, of whose rows neither number nor length is "
                "known beforehand, and which one reader per process reads in order"
            )
        return self

    @model_validator(mode="after")
    def _kept_answers_stay_true(self):
        if self.distillation.keep_answers and self.lora is None:
            raise ValueError(
                "distillation.keep_answers goes with lora: full fine-tuning changes the image features it keeps"
            )
        return self

    @model_validator(mode="after")
    def _kept_features_are_those_of_the_students(self):
        if self.distillation.keep_answers and self.model.teacher is not None:
            raise ValueError("distillation.keep_answers goes without model.teacher, whose image features it would keep")
        return self

    @model_validator(mode="after")
    def _steps_are_left(self):
        max_steps = self.training.max_steps
        for student in self.students:
            if max_steps is not None and isinstance(student.plan, GateSettings) and student.plan.steps >= max_steps:
                raise ValueError(
                    f"student {student.name}: plan.steps: got {student.plan.steps}, "
                    f"allowed: less than training.max_steps ({max_steps}), of which they are a part"
                )
        return self

    @model_validator(mode="after")
    def _races_can_be_run(self):
        max_steps = self.training.max_steps
        for student in self.students:
            if not isinstance(student.plan, RaceSettings):
                continue
            if self.validation is None:
                raise ValueError("validation: got null, but a race scores its candidates on these samples")
            if max_steps is None:
                raise ValueError("training.max_steps: got null, but a race counts in steps")
            if student.plan.last_step >= max_steps:
                raise ValueError(
                    f"student {student.name}: plan.steps: got {student.plan.steps}, so that the race ends at step "
                    f"{student.plan.last_step}; allowed: fewer, so that it ends before training.max_steps ({max_steps})"
                )
            if not any(
                other.distil and (other.plan, other.seed) == (student.plan, student.seed) for other in self.students
            ):
                raise ValueError(
                    f"student {student.name}: distil: got false, allowed: true, as its plan is found by distilling"
                )
        return self

    @property
    def students(self) -> tuple[CompareSettings, ...]:
        """All students of the run, each with the settings of its plan."""
        raise NotImplementedError

    def global_batches(self, processes: int) -> dict[str, int]:
        """Returns the number of samples in an optimizer step, by the section that trains."""
        training = self.training
        return {"training": training.micro_batch_size * training.gradient_accumulation_steps * processes}

    def training_of(self, student: CompareSettings) -> TrainingSettings:
        """Returns the settings of the student's distillation, without the steps in which its plan is learned."""
        if self.training.max_steps is None or not isinstance(student.plan, GateSettings):
            return self.training
        return self.training.model_copy(update={"max_steps": self.training.max_steps - student.plan.steps})


class SparsifyRecipe(StudentRecipe):
    """Find a plan for a dense model, distil the student under it, evaluate it, export it, and write a report."""

    task: Literal["sparsify"]
    """What the run does: it makes one sparse student, and exports it."""
    plan: PlannerSettings
    """How the student's plan is found."""
    compare: tuple[CompareSettings, ...] = Field(default=(), max_length=32)
    """More students to compare it with. They are not exported."""
    publish: Annotated[PublishSettings | None, MayChange.ALWAYS] = None
    """Where the checkpoint is published in the end. null: nowhere."""

    @model_validator(mode="after")
    def _names_differ(self):
        names = [row.name for row in self.compare]
        folders = [name.lower() for name in names]  # a file system may take names for equal that differ in case
        if len({*TAKEN, *folders}) < len(TAKEN) + len(folders):
            raise ValueError(
                f"compare: names must differ from each other and from {', '.join(TAKEN)}, got {', '.join(names)}"
            )
        if any(name.endswith(".json") for name in folders):
            raise ValueError(f"compare: names may not end in .json, as files do, got {', '.join(names)}")
        return self

    @property
    def students(self) -> tuple[CompareSettings, ...]:
        """The student of the recipe's own plan, then those it is compared with."""
        student = CompareSettings(name=STUDENT, plan=self.plan, distil=True)
        return (student, *(row.model_copy(update={"plan": row.plan or self.plan}) for row in self.compare))
