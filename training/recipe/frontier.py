"""The recipes of `task: frontier` and `task: planners`, which compare planners at several budgets."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from training.recipe.base import NAME
from training.recipe.gates import PlannerSettings
from training.recipe.student import CompareSettings, StudentRecipe
from training.schema import Strict


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
        if self.budgets is not None and self.plan.bound is None:
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
        return (None,) if rival.plan.bound is None else rival.budgets or self.budgets

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
        plan = self.planners[planner].plan.with_seed(seed)
        if budget is not None:
            plan = plan.with_budget(budget)
        name = f"{planner}-{'own' if budget is None else f'{budget:g}'}-{seed}{'' if distil else '-untrained'}"
        return CompareSettings(name=name, plan=plan, distil=distil, seed=seed)


class PlannersRecipe(FrontierRecipe):
    """A frontier in which every plan stands twice: as it was found, and distilled."""

    task: Literal["planners"]

    @property
    def _distil(self) -> tuple[bool, ...]:
        return (False, True)
