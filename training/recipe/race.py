"""The settings of a race, in which candidate plans are distilled until one is left, and of any plan of a recipe."""

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from data.sources.settings import Name
from training.measure.budget import Budget
from training.planners import AnyPlanner
from training.planners.planner import BudgetPlanner
from training.recipe.gates import GateSettings

Candidate = Annotated[AnyPlanner | GateSettings, Field(discriminator="planner")]
"""The settings of a plan that may race."""


class Round(NamedTuple):
    """One round of a race."""

    candidates: int
    """How many candidates are trained in it."""
    step: int
    """The step that they are trained to, counted from the beginning of the training."""


class RaceSettings(BudgetPlanner):
    """The best of several plans: all are distilled for some steps, and the worse half is dropped until one is left.

    This is successive halving (arXiv 1502.07943). Each candidate is trained as the student would be, with the same
    learning rate at each step, and goes on in the next round where it stopped. In the end of a round it is scored by
    the loss of `distillation` on the samples of `validation`. Of equal losses the cheaper plan's is better, then the
    first. The last one is the student, and is trained to `training.max_steps`. The steps of the others are taken
    besides.
    """

    planner: Literal["race"]
    """Name of the planner."""
    candidates: dict[Name, Candidate] = Field(min_length=1, max_length=32)
    """Name of each candidate -> how its plan is found or learned. One that has a budget has that of the race. One that
    has none is refused if its plan costs more."""
    steps: int = Field(ge=1)
    """Optimizer steps that each candidate is trained for in the first round. Each later round ends at twice as many
    steps as the one before. The steps in which a candidate's gates are learned are among them."""

    @model_validator(mode="after")
    def _candidates_are_told_apart(self):
        if len({name.lower() for name in self.candidates}) < len(self.candidates):
            raise ValueError(f"candidates: names must differ in more than case, got {', '.join(self.candidates)}")
        return self

    @model_validator(mode="after")
    def _race_within_one_budget(self):
        for name, candidate in self.candidates.items():
            if candidate.bound not in (None, self.budget):
                raise ValueError(
                    f"candidates.{name}.budget: got {_in_words(candidate.bound)}, allowed: that of the race "
                    f"({_in_words(self.budget)}), as a plan that costs more would win unfairly"
                )
        return self

    @model_validator(mode="after")
    def _gates_are_distilled(self):
        for name, candidate in self.candidates.items():
            if self.rounds and isinstance(candidate, GateSettings) and candidate.steps >= self.steps:
                raise ValueError(
                    f"candidates.{name}.steps: got {candidate.steps}, allowed: less than the steps of the first round "
                    f"({self.steps}), of which they are a part"
                )
        return self

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The rounds, in order. A single candidate has none."""
        rounds, left, step = [], len(self.candidates), self.steps
        while left > 1:
            rounds.append(Round(left, step))
            left, step = (left + 1) // 2, 2 * step
        return tuple(rounds)

    @property
    def last_step(self) -> int:
        """The step of its training at which the winner is found."""
        return self.rounds[-1].step if self.rounds else 0

    @property
    def all_steps(self) -> int:
        """The steps that all candidates take until the winner is found."""
        steps = 0
        for number, (candidates, step) in enumerate(self.rounds):
            steps += candidates * (step if number == 0 else step // 2)
        return steps

    @property
    def extra_steps(self) -> int:
        """The steps that are taken besides those of the winner."""
        return self.all_steps - self.last_step

    @property
    def bounds(self) -> tuple[Budget, ...]:
        return (self.budget, *(bound for candidate in self.candidates.values() for bound in candidate.bounds))

    @property
    def needs_statistics(self) -> bool:
        return any(candidate.needs_statistics for candidate in self.candidates.values())

    @property
    def needs_unit_kl(self) -> bool:
        return any(candidate.needs_unit_kl for candidate in self.candidates.values())

    def with_budget(self, share: float) -> Self:
        """Returns the same race within this budget of visual FLOPs, which every candidate with a budget gets."""
        return super().with_budget(share)._with({name: one.with_budget(share) for name, one in self.candidates.items()})

    def with_seed(self, seed: int) -> Self:
        """Returns the same race, in which every planner that has a seed has this one."""
        return self._with({name: one.with_seed(seed) for name, one in self.candidates.items()})

    def _with(self, candidates: dict[str, Candidate]) -> Self:
        return self.model_copy(update={"candidates": candidates})


PlannerSettings = Annotated[AnyPlanner | GateSettings | RaceSettings, Field(discriminator="planner")]
"""The settings of any plan that a recipe may ask for, whether it is found, learned, or the winner of a race."""


def _in_words(budget: Budget) -> str:
    return f"{budget.measure} {budget.share:g}"
