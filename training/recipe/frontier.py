"""The recipes of `task: frontier` and `task: planners`, which compare planners at several budgets."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from data.sources.settings import Name, Seed
from training.recipe.race import PlannerSettings
from training.recipe.student import CompareSettings, StudentRecipe
from training.schema import Strict

MOST_STUDENTS = 500
"""Students of a frontier. Each is trained."""


def _in_name(number: float) -> str:
    """Returns a budget or a seed as it stands in the name of a student."""
    return f"{number:g}" if isinstance(number, float) else str(number)


def _refuse_repeated(setting: str, numbers: Sequence[float]) -> None:
    """Raises ValueError where two students would be the same, or have the same name."""
    names = list(map(_in_name, numbers))
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{setting}: got {name} twice, allowed: numbers that differ in their first six digits")


class FrontierPlannerSettings(Strict):
    """One planner of a frontier. It gives one curve."""

    plan: PlannerSettings
    """The planner and its settings. Its budget is replaced by each budget of the frontier in turn. A planner without a
    budget gives one point, at the cost that its plan happens to have."""
    budgets: tuple[float, ...] | None = Field(default=None, min_length=1, max_length=32)
    """Budgets that this planner gets, as shares of the dense model's visual FLOPs. null: all budgets of the
    frontier."""
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1, max_length=32)
    """Seeds of plan and training, no two equal. Each seed gives one student per budget."""

    @model_validator(mode="after")
    def _has_a_budget(self):
        if self.budgets is not None and self.plan.bound is None:
            raise ValueError("budgets: the plan has no budget to vary; give it one, of any size, or leave budgets out")
        _refuse_repeated("budgets", self.budgets or ())
        _refuse_repeated("seeds", self.seeds)
        return self


class FrontierRecipe(StudentRecipe):
    """Distil students of several planners at several budgets and seeds: accuracy against cost."""

    task: Literal["frontier"]
    """What the run does: it plots the accuracy of distilled students against their cost."""
    budgets: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(min_length=1, max_length=32)
    """Budgets of the plans, as shares of the dense model's visual FLOPs. They differ in their first six digits, which
    names have."""
    planners: dict[Name, FrontierPlannerSettings] = Field(min_length=1, max_length=64)
    """Name of each planner in plots and tables -> its settings."""

    @model_validator(mode="after")
    def _budgets_are_known(self):
        _refuse_repeated("budgets", self.budgets)
        for name, planner in self.planners.items():
            if unknown := set(planner.budgets or ()) - set(self.budgets):
                raise ValueError(
                    f"planners.{name}.budgets: {sorted(unknown)} are not among budgets "
                    f"({', '.join(map(str, self.budgets))})"
                )
        return self

    @model_validator(mode="after")
    def _counts_in_steps(self):
        if self.training.max_steps is None:
            raise ValueError("training.max_steps: a frontier counts in steps, give them rather than num_epochs")
        return self

    @model_validator(mode="after")
    def _are_not_too_many(self):
        if len(self.points()) > MOST_STUDENTS:
            raise ValueError(f"got {len(self.points())} students, allowed: up to {MOST_STUDENTS}")
        return self

    def budgets_of(self, planner: FrontierPlannerSettings) -> tuple[float | None, ...]:
        """Returns the budgets that the planner gets: None alone if it has no budget."""
        return (None,) if planner.plan.bound is None else planner.budgets or self.budgets

    def points(self) -> list[tuple[str, float | None, int, CompareSettings]]:
        """Returns the name of the planner, the budget, the seed and the student of every point."""
        return [
            (name, budget, seed, self._student(name, budget, seed, distil))
            for name, planner in self.planners.items()
            for budget in self.budgets_of(planner)
            for seed in planner.seeds
            for distil in self._distil
        ]

    @property
    def students(self) -> tuple[CompareSettings, ...]:
        """The students of all points."""
        return tuple(student for *_, student in self.points())

    @property
    def _distil(self) -> tuple[bool, ...]:
        """Whether students are distilled. With two values there are two students for each plan."""
        return (True,)

    def _student(self, planner: str, budget: float | None, seed: int, distil: bool) -> CompareSettings:
        plan = self.planners[planner].plan.with_seed(seed)
        if budget is not None:
            plan = plan.with_budget(budget)
        name = f"{planner}-{'own' if budget is None else _in_name(budget)}-{seed}{'' if distil else '-untrained'}"
        return CompareSettings(name=name, plan=plan, distil=distil, seed=seed)


class PlannersRecipe(FrontierRecipe):
    """A frontier in which every plan gives two students, of which one is distilled and one is not trained at all."""

    task: Literal["planners"]
    """What the run does: it compares planners, both without training and after distillation."""

    @property
    def _distil(self) -> tuple[bool, ...]:
        return (False, True)
