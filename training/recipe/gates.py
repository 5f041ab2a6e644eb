"""Settings of plans that are learned, and of any plan a recipe may ask for."""

from typing import Annotated, Literal

from pydantic import Field

from modeling.visual_gates import GATE_KINDS
from training.measure.price import GateBudget
from training.planners import SearchSettings
from training.schema import Strict

GateKind = Literal["attend", "ffn", "read", "heads", "neurons"]

SERVABLE = ("attend", "ffn", "neurons")


class GateSettings(Strict):
    """Gates learned together with LoRA, under a budget."""

    planner: Literal["gates"]
    budget: GateBudget
    start: Annotated[SearchSettings, Field(discriminator="planner")] | None = None
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

    @property
    def learned(self) -> tuple[str, ...]:
        """The kinds of gates that are learned."""
        allowed = SERVABLE if self.profile == "servable" else GATE_KINDS
        return tuple(name for name in GATE_KINDS if name in allowed and name not in self.off)


PlannerSettings = Annotated[GateSettings | SearchSettings, Field(discriminator="planner")]
