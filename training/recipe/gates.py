"""The settings of a plan that is learned by gates."""

from typing import Literal, get_args

from pydantic import Field, model_validator

from training.measure.budget import Budget
from training.planners import AnyPlanner
from training.planners.planner import BudgetPlanner

GateKind = Literal["attend", "ffn", "read", "heads", "neurons"]
SERVABLE: tuple[GateKind, ...] = ("attend", "ffn", "neurons")
"""Kinds of gates whose plans a server with paged attention can execute."""


class GateSettings(BudgetPlanner):
    """A plan that is learned: gates on the visual work are trained together with LoRA adapters, under a budget."""

    reads_statistics = True
    planner: Literal["gates"]
    """Name of the planner."""
    start: AnyPlanner | None = None
    """The plan that learning starts from: its gates are open at first. null: the dense plan. It should cost more than
    the budget, as learning hardly changes a plan that costs less."""
    profile: Literal["max", "servable"] = "max"
    """Which kinds of gates are learned. max: all. servable: attend, ffn and neurons, whose plans a server with paged
    attention can execute."""
    off: tuple[GateKind, ...] = ()
    """Kinds of gates that are not learned but stay as in `start`. attend and ffn: updates of visual tokens by attention
    and FFN. read: whether text attends to them. heads and neurons: single attention units, and blocks of FFN
    neurons."""
    steps: int = Field(ge=1)
    """Optimizer steps in which gates are learned. If training counts in steps, distillation is shorter by these."""
    learning_rate: float = Field(default=0.1, gt=0)
    """Learning rate of the gates' log alpha (AdamW). The LoRA adapters have the learning rate of `training`."""
    multiplier_learning_rate: float = Field(default=0.05, gt=0)
    """Learning rate of the two Lagrange multipliers that hold the cost to its target."""
    budget_reached: float = Field(default=0.6, gt=0, le=1)
    """Share of the steps after which the target of the cost has fallen to the budget."""
    openness: float = Field(default=2.0, gt=0)
    """log alpha of a gate that is open at first. A gate that is shut at first has the negative of it."""
    ffn_blocks: int = Field(default=16, ge=1)
    """Number of blocks that the FFN neurons of a layer are divided into, by importance. Each block has one gate."""
    draws: int = Field(default=32, ge=0)
    """Number of plans that are drawn from the gates in the end, besides the most probable one. The plan with the least
    KL from the dense model's answers is taken."""

    @model_validator(mode="after")
    def _leaves_something(self):
        if self.budget.share == 0:
            raise ValueError(
                f"budget.{self.budget.measure}: got 0, allowed: more than 0, as the target falls by a factor"
            )
        return self

    @property
    def bounds(self) -> tuple[Budget, ...]:
        """All budgets: of this plan, and of the plan that learning starts from."""
        return (self.budget, *(self.start.bounds if self.start else ()))

    @property
    def needs_unit_kl(self) -> bool:
        return self.start is not None and self.start.needs_unit_kl

    @property
    def learned_kinds(self) -> tuple[GateKind, ...]:
        """The kinds of gates that are learned."""
        allowed = SERVABLE if self.profile == "servable" else get_args(GateKind)
        return tuple(name for name in get_args(GateKind) if name in allowed and name not in self.off)

    def with_budget(self, share: float) -> "GateSettings":
        """Returns the same settings with this budget of visual FLOPs.

        The budget of `start` changes by the same factor, but not above 1.
        """
        changed = super().with_budget(share)
        if self.start is None or self.start.bound is None:
            return changed
        ratio = self.start.bound.share / self.budget.share
        return changed.model_copy(update={"start": self.start.with_budget(min(1.0, ratio * share))})
