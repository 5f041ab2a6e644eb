"""The base classes of planners. A planner has settings that a recipe may give, and finds a `VisualPlan` by them.

A planner is one file in this folder with one subclass of `Planner`. Nothing else in the project names it. The class
declares what it needs and finds its own plan. Torch is imported only where a plan is found, so recipes are read without
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from modeling.visual_plan import VisualPlan
from training.measure.budget import Budget
from training.schema import Strict

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from training.measure.latency import LatencyTable
    from training.planners.tools.search import Search


class Planner(Strict):
    """The settings of one planner.

    A subclass declares a field `planner: Literal["its name"]` and overrides `plan_of_config` or `find`. If it has a
    field `seed`, a frontier sets it to each of its seeds.
    """

    planner: str
    """Name of the planner."""

    reads_statistics: ClassVar[bool] = False
    """Whether `find` reads `Search.calibration`."""
    reads_unit_kl: ClassVar[bool] = False
    """Whether it also reads `unit_kl` of these statistics, which takes far longer to measure than the others."""
    plot: ClassVar[Literal["withdrawals", "shares", "slopes"] | None] = None
    """How training/report/search_plots.py plots what a search wrote into its folder. None if it writes nothing."""

    combines_planners: ClassVar[bool] = False
    """Whether it combines the plans of other planners. Such a class has fields of type `StackablePlanner`."""

    @property
    def keeps_plan(self) -> bool:
        """Whether the plan opens nothing that the plan of a sparse checkpoint in `model.path` has shut."""
        return False

    @property
    def bound(self) -> Budget | None:
        """The budget that the plan must meet. None where other settings decide what the plan costs."""
        return None

    @property
    def bounds(self) -> tuple[Budget, ...]:
        """All budgets in these settings, including those of planners within them."""
        return () if self.bound is None else (self.bound,)

    @property
    def needs_statistics(self) -> bool:
        """Whether the search for the plan reads calibrated statistics."""
        return self.reads_statistics

    @property
    def needs_unit_kl(self) -> bool:
        """Whether the search for the plan reads the answer KL without each unit."""
        return self.reads_unit_kl

    def with_budget(self, share: float) -> Self:
        """Returns the same settings with a budget of visual FLOPs, or unchanged where they have no budget.

        Args:
            share: the budget in [0, 1].
        """
        return self if self.bound is None else self.model_copy(update={"budget": Budget(visual_flops=share)})

    def with_seed(self, seed: int) -> Self:
        """Returns the same settings with this seed, or unchanged where the planner has no seed."""
        return self.model_copy(update={"seed": seed}) if "seed" in type(self).model_fields else self

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan | None:
        """Returns the plan if the model's config alone decides it. Returns None if weights or data are needed.

        Args:
            latency: timings of the machine. The plan for a budget of latency depends on them.

        Raises:
            UserError: the settings do not fit the model.
        """
        return None

    def plan_of_same_cost(self, config: PreTrainedConfig) -> VisualPlan | None:
        """Returns a plan that costs as much as the plan that will be found. Returns None if the config does not tell.

        A dry run calls it.

        Raises:
            UserError: the settings do not fit the model.
        """
        return self.plan_of_config(config)

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan that these settings lead to.

        Raises:
            UserError: the settings do not fit the model or the data.
        """
        plan = self.plan_of_config(search.config, search.latency)
        assert plan is not None, f"{type(self).__name__} finds no plan"
        return plan


class BudgetPlanner(Planner):
    """A planner whose plan is always bounded by a budget."""

    budget: Budget
    """The most that the plan may cost."""

    @property
    def bound(self) -> Budget:
        return self.budget


class SolvingPlanner(Planner):
    """A planner that takes either a budget or the one setting that a budget decides."""

    solves: ClassVar[str]
    """The name of the setting that a budget decides. The setting is None where a budget is given."""
    budget: Budget | None = None
    """The most that the plan may cost. Null: other settings decide what the plan costs."""

    @model_validator(mode="after")
    def _one_way(self):
        if (self.budget is None) == (getattr(self, self.solves) is None):
            raise ValueError(f"give either a budget or {self.solves}")
        return self

    @property
    def bound(self) -> Budget | None:
        return self.budget

    def largest_within_budget(
        self,
        config: PreTrainedConfig,
        latency: LatencyTable | None,
        sizes: Sequence[float],
        plan_of: Callable[[float], VisualPlan],
        cheapest: str,
    ) -> VisualPlan | None:
        """Returns the plan of the largest size that fits the budget.

        Returns None for a budget of latency without timings. The arguments are those of
        `training.planners.tools.largest.largest_within`.

        Raises:
            UserError: even the plan of the smallest size exceeds the budget.
        """
        if self.budget.measure == "latency" and latency is None:
            return None
        from training.planners.tools.largest import largest_within

        return largest_within(self.budget, config, latency, sizes, plan_of, cheapest)
