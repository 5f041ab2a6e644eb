"""A recipe: one YAML file that describes one complete run, checked before anything is loaded.

Each section's settings live beside the code they steer; this file only puts them together. Every section is closed: an
unknown key, at any depth, is an error that names the path and the nearest valid key. Paths are relative to the working
directory. `key.sub=value` overrides are applied to the YAML before it is checked.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from data.shapes.world import WorldSettings
from training.distillation.lora import LoraSettings
from training.distillation.losses import DistillationSettings
from training.distillation.trainer import TrainingSettings
from training.measure.calibration import CalibrationSettings
from training.planners import budget_of
from training.planners.g_search import GSearchSettings
from training.planners.p_sigmoid import PSigmoidSettings
from training.planners.pre_pruning import PrePruningSettings
from training.planners.random_plan import RandomSettings
from training.recipe.gates import GateSettings, PlannerSettings
from training.schema import Strict
from training.tasks.dense import TeacherSettings

NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"
STUDENT = "student"
"""The name of the recipe's own student among the models compared."""


class BaseRecipe(Strict):
    """What every run has."""

    name: str = Field(pattern=NAME)
    """Names the run's folder, runs/<name>."""
    seed: int = Field(ge=0)


class DenseRecipe(BaseRecipe):
    """Train a dense model from scratch on the embedded world."""

    task: Literal["dense"]
    teacher: TeacherSettings


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


class SourceSettings(Strict):
    """Samples from a LLaVA JSON (`path` and `images`), or from a split of `data.world`."""

    path: Path | None = None
    images: Path | None = None
    """Folder that the image paths in the JSON are relative to; images outside it are refused."""
    split: str | None = None
    weight: float | None = Field(default=None, gt=0)
    """How often each sample is used; 0.5 is a random half."""
    num_samples: int | None = Field(default=None, gt=0)
    """Random samples used, instead of a weight."""

    @model_validator(mode="after")
    def _one_origin(self):
        if (self.path is None) == (self.split is None):
            raise ValueError("give either path (a LLaVA JSON) or split (of data.world)")
        if (self.path is None) != (self.images is None):
            raise ValueError("images goes with path: the folder of the JSON's images")
        if self.weight is not None and self.num_samples is not None:
            raise ValueError("give weight or num_samples, not both")
        return self


class DataSettings(Strict):
    """What is trained, calibrated and evaluated on."""

    world: WorldSettings | None = None
    """The embedded world, for sources that name one of its splits."""
    train: tuple[SourceSettings, ...] = Field(min_length=1)
    calibration: tuple[SourceSettings, ...] = Field(min_length=1)
    """Held apart from evaluation: the plan is searched on it."""
    evaluation: tuple[SourceSettings, ...] = Field(min_length=1)
    """Rows carry the `family` they are scored by."""
    max_length: int = Field(gt=0)
    """Tokens, visual ones included; longer samples are left out and counted, never cut."""
    on_bad_sample: Literal["error", "skip"] = "error"
    max_bad_share: float = Field(default=0.0, ge=0, le=1)
    """Under `skip`: the largest share of bad samples that is still accepted."""

    @model_validator(mode="after")
    def _splits_exist(self):
        known = self.world.splits if self.world else {}
        for source in (*self.train, *self.calibration, *self.evaluation):
            if source.split is not None and source.split not in known:
                raise ValueError(
                    f"split {source.split!r} is not one of data.world ({', '.join(known) or 'which is not given'})"
                )
        return self


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


class RivalSettings(Strict):
    """One curve of a frontier."""

    plan: PlannerSettings
    """Its budget is replaced by each of the frontier's in turn, which bound visual FLOPs; so is that of the plan where gates start.
    A plan without a budget is one point, at its own cost."""
    budgets: tuple[float, ...] | None = None
    """Those this planner is asked for; null: all."""
    seeds: tuple[int, ...] = (0,)

    @model_validator(mode="after")
    def _has_a_budget(self):
        if self.budgets is not None and budget_of(self.plan) is None:
            raise ValueError("budgets: the plan has no budget to vary; give it one, of any size, or leave budgets out")
        return self


class FrontierRecipe(StudentRecipe):
    """Distil students of several planners at several budgets and seeds: accuracy against cost."""

    task: Literal["frontier"]
    budgets: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(min_length=1)
    """Shares of the dense model's visual FLOPs."""
    planners: dict[Annotated[str, Field(pattern=NAME)], RivalSettings] = Field(min_length=1)
    """By the name each has in the pictures."""

    @model_validator(mode="after")
    def _budgets_are_known(self):
        for name, rival in self.planners.items():
            if unknown := set(rival.budgets or ()) - set(self.budgets):
                raise ValueError(
                    f"planners.{name}.budgets: {sorted(unknown)} are not among budgets ({', '.join(map(str, self.budgets))})"
                )
        return self

    @model_validator(mode="after")
    def _counts_in_steps(self):
        if self.training.max_steps is None:
            raise ValueError("training.max_steps: a frontier counts in steps, give them rather than num_epochs")
        return self

    def budgets_of(self, rival: RivalSettings) -> tuple[float | None, ...]:
        """Those the planner is asked for; None where its plan has its own cost."""
        return (None,) if budget_of(rival.plan) is None else rival.budgets or self.budgets

    def points(self) -> list[tuple[str, float | None, int, CompareSettings]]:
        """Planner, budget, seed and student of every point."""
        return [
            (planner, budget, seed, self._student(planner, budget, seed, distil))
            for planner, rival in self.planners.items()
            for budget in self.budgets_of(rival)
            for seed in rival.seeds
            for distil in self._distil
        ]

    @property
    def students(self) -> tuple[CompareSettings, ...]:
        return tuple(student for *_, student in self.points())

    @property
    def _distil(self) -> tuple[bool, ...]:
        return (True,)

    def _student(self, planner: str, budget: float | None, seed: int, distil: bool) -> CompareSettings:
        plan = self.planners[planner].plan
        if budget is not None:
            plan = _with_budget(plan, budget)
        if isinstance(plan, RandomSettings | PrePruningSettings | PSigmoidSettings | GSearchSettings):
            plan = plan.model_copy(update={"seed": seed})
        name = f"{planner}-{'own' if budget is None else f'{budget:g}'}-{seed}{'' if distil else '-untrained'}"
        return CompareSettings(name=name, plan=plan, distil=distil, seed=seed)


class PlannersRecipe(FrontierRecipe):
    """A frontier in which every plan stands twice: as it was found, and distilled."""

    task: Literal["planners"]

    @property
    def _distil(self) -> tuple[bool, ...]:
        return (False, True)


def _with_budget(settings: PlannerSettings, share: float) -> PlannerSettings:
    changes = {"budget": type(settings.budget)(visual_flops=share)}
    start = settings.start if isinstance(settings, GateSettings) else None
    if start is not None and budget_of(start) is not None:
        wider = start.budget.visual_flops / settings.budget.share  # as in the recipe
        changes["start"] = _with_budget(start, min(1.0, wider * share))
    return settings.model_copy(update=changes)


Recipe = Annotated[DenseRecipe | SparsifyRecipe | FrontierRecipe | PlannersRecipe, Field(discriminator="task")]
