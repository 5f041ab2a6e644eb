"""What every planner is: settings that a recipe may give, and one way to find a `VisualPlan` by them.

A planner is one file in this folder with one subclass of `Planner`. Nothing else in the project names it. The class says
what it needs, and finds its own plan. Torch is imported where a plan is found, so that recipes are read without it.
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

    A subclass has a field `planner: Literal["its name"]` and overrides `plan_of_config` or `find`. A field `seed` is
    replaced by each seed of a frontier.
    """

    planner: str

    reads_statistics: ClassVar[bool] = False
    """Whether `find` reads `Search.calibration`."""
    plot: ClassVar[Literal["withdrawals", "shares", "slopes"] | None] = None
    """How training/report/search_plots.py draws what a search left in its folder; None where it leaves nothing."""

    made_of_others: ClassVar[bool] = False
    """Whether it combines the plans of other planners, of which it has fields of type `PartPlanner`."""

    @property
    def bound(self) -> Budget | None:
        """The budget that the plan must meet; None where other settings decide what it costs."""
        return None

    @property
    def bounds(self) -> tuple[Budget, ...]:
        """All budgets in these settings, those of plans within plans included."""
        return () if self.bound is None else (self.bound,)

    @property
    def needs_statistics(self) -> bool:
        """Whether the plan is found from calibrated statistics."""
        return self.reads_statistics

    def with_budget(self, share: float) -> Self:
        """Returns the same planner with a budget of visual FLOPs, where it has a budget."""
        return self if self.bound is None else self.model_copy(update={"budget": Budget(visual_flops=share)})

    def with_seed(self, seed: int) -> Self:
        """Returns the same planner with this seed, where it has one."""
        return self.model_copy(update={"seed": seed}) if "seed" in type(self).model_fields else self

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan | None:
        """Returns the plan where the model's config alone decides it; None where weights or data have a say.

        Args:
            latency: timings of the machine. A budget of latency is decided by the config only together with them.

        Raises:
            UserError: the settings do not fit the model.
        """
        return None

    def plan_of_same_cost(self, config: PreTrainedConfig) -> VisualPlan | None:
        """Returns a plan that costs what the found one will cost, where the config decides that; for a dry run."""
        return self.plan_of_config(config)

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan.

        Raises:
            UserError: the settings do not fit the model or the data.
        """
        plan = self.plan_of_config(search.config, search.latency)
        assert plan is not None, f"{type(self).__name__} finds no plan"
        return plan


class BudgetPlanner(Planner):
    """A planner that a budget bounds, and nothing else."""

    budget: Budget

    @property
    def bound(self) -> Budget:
        return self.budget


class SolvingPlanner(Planner):
    """A planner of which either a budget is given, or the one setting that a budget decides."""

    solves: ClassVar[str]
    """The name of that setting, None where a budget is given."""
    budget: Budget | None = None

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
        least: str,
    ) -> VisualPlan | None:
        """Returns the plan of the largest size that fits the budget; None where it takes timings that are not given.

        Args: as `training.planners.tools.largest.largest_within`.
        """
        if self.budget.measure == "latency" and latency is None:
            return None
        from training.planners.tools.largest import largest_within

        return largest_within(self.budget, config, latency, sizes, plan_of, least)
