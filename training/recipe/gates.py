"""The settings of a plan that is learned, and of any plan that a recipe may ask for."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from training.measure.budget import Budget
from training.planners import AnyPlanner
from training.planners.planner import BudgetPlanner

GateKind = Literal["attend", "ffn", "read", "heads", "neurons"]
SERVABLE: tuple[GateKind, ...] = ("attend", "ffn", "neurons")
"""What servers with paged attention can execute."""


class GateSettings(BudgetPlanner):
    """Gates that are learned together with LoRA, under a budget."""

    reads_statistics = True
    planner: Literal["gates"]
    start: AnyPlanner | None = None
    """The plan whose gates are open at first; null: the dense one. One that costs no more than the budget is hardly left."""
    profile: Literal["max", "servable"] = "max"
    """servable: freezing and FFN narrowing only, which servers with paged attention can execute."""
    off: tuple[GateKind, ...] = ()
    """Kinds of gates that are not learned: they stay as in `start`."""
    steps: int = Field(ge=1)
    learning_rate: float = Field(default=0.1, gt=0)
    """Of log alpha (Adam); LoRA has the recipe's."""
    multiplier_learning_rate: float = Field(default=0.05, gt=0)
    budget_reached: float = Field(default=0.6, gt=0, le=1)
    """Share of the steps after which the falling target is the budget."""
    openness: float = Field(default=2.0, gt=0)
    """log alpha of a gate that is open at first; a shut one has minus that."""
    ffn_blocks: int = Field(default=16, ge=1)
    """FFN neurons of a layer are gated in this many blocks of like importance."""
    draws: int = Field(default=32, ge=0)
    """Hard plans drawn besides the most probable one, to choose from by answer KL."""

    @model_validator(mode="after")
    def _leaves_something(self):
        if self.budget.share == 0:
            raise ValueError(
                f"budget.{self.budget.measure}: got 0, allowed: more than 0, as the target falls by a factor"
            )
        return self

    @property
    def bounds(self) -> tuple[Budget, ...]:
        return (self.budget, *(self.start.bounds if self.start else ()))

    @property
    def learned_kinds(self) -> tuple[GateKind, ...]:
        """The kinds of gates that are learned."""
        allowed = SERVABLE if self.profile == "servable" else get_args(GateKind)
        return tuple(name for name in get_args(GateKind) if name in allowed and name not in self.off)

    def with_budget(self, share: float) -> "GateSettings":
        """Returns the same settings with a budget of visual FLOPs; the start's budget keeps its ratio to it."""
        changed = super().with_budget(share)
        if self.start is None or self.start.bound is None:
            return changed
        wider = self.start.bound.share / self.budget.share
        return changed.model_copy(update={"start": self.start.with_budget(min(1.0, wider * share))})


PlannerSettings = Annotated[AnyPlanner | GateSettings, Field(discriminator="planner")]
"""Any plan that a recipe may ask for, found or learned."""
