"""Stack: one plan that does only what all of several plans would do, such as a token schedule over narrow layers.

Per layer, of the plans that are stacked:

    tokens              the least; where it falls, ranked as in the plans that fall to it
    attend, read        where all do
    heads, ffn          what all serve: the least of counts, the common part of lists; none where one serves none
    radius              the smallest; bidirectional as in the plans that have it

What plans disagree on is refused rather than decided: ranks, or `bidirectional`, of plans that count alike here, and a count
(of units in an exported checkpoint's order) beside a list (of units in the dense model's). Ranks stand in the result where
tokens are ranked, lists in it are sorted. Up to that, order and grouping change nothing, the dense plan adds nothing, and
stacking a plan on itself neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field

from modeling.layer_plan import LayerPlan, Rank
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.measure.budget import Budget
from training.planners.planner import Planner

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from training.measure.latency import LatencyTable
    from training.planners import PartPlanner
    from training.planners.tools.search import Search

Value = TypeVar("Value")


class StackPlanner(Planner):
    """Plans found one by one, each for the dense model and within its own budget, then stacked."""

    made_of_others = True
    planner: Literal["stack"]
    of: tuple[PartPlanner, ...] = Field(min_length=2)

    @property
    def bounds(self) -> tuple[Budget, ...]:
        return tuple(bound for part in self.of for bound in part.bounds)

    @property
    def needs_statistics(self) -> bool:
        return any(part.needs_statistics for part in self.of)

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan | None:
        """Returns the plan where the config decides every part of it. Raises UserError as `stacked`."""
        plans = [part.plan_of_config(config, latency) for part in self.of]
        return None if None in plans else stacked(plans)

    def plan_of_same_cost(self, config: PreTrainedConfig) -> VisualPlan | None:
        """Returns a plan that costs as much; None where only calibration tells which units two lists have in common."""
        plans = [part.plan_of_same_cost(config) for part in self.of]
        decided = None not in plans and sum(not plan.is_integer for plan in plans) < 2
        return stacked(plans) if decided else None

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan that is stacked of the parts' own. Raises UserError as `stacked` and as the parts."""
        return stacked([part.find(search.part(str(index))) for index, part in enumerate(self.of)])


def stacked(plans: Sequence[VisualPlan]) -> VisualPlan:
    """The plan that does what all of `plans` would do.

    Raises:
        UserError: plans of different numbers of layers, or that disagree; or tokens would be ranked by a layer that another
            plan has shut.
    """
    if len({len(plan) for plan in plans}) > 1:
        lengths = " and ".join(str(len(plan)) for plan in plans)
        raise UserError(f"plan.of: got plans of {lengths} layers, allowed: of one model")
    layers, carried = [], 1.0
    for index, parts in enumerate(zip(*(plan.layers for plan in plans), strict=True)):
        try:
            layers.append(_layer(parts, carried))
        except UserError as error:
            raise UserError(f"plan.of: layer {index}: {error}") from None
        carried = layers[-1].tokens
    return VisualPlan(layers=tuple(layers))


def _layer(parts: Sequence[LayerPlan], carried: float) -> LayerPlan:
    """One layer; the layer before carries `carried`."""
    tokens = min(part.tokens for part in parts)
    falls = 0 < tokens < carried
    radius = min((part.radius for part in parts if part.radius is not None), default=None)
    return LayerPlan(
        tokens=tokens,
        rank=_agreed("rank", (part.rank for part in parts if part.tokens == tokens)) if falls else Rank(),
        attend=all(part.attend for part in parts),
        read=all(part.read for part in parts),
        heads=_served("heads", [part.heads for part in parts]),
        ffn=_served("ffn", [part.ffn for part in parts]),
        radius=radius,
        bidirectional=_agreed("bidirectional", (part.bidirectional for part in parts if part.radius == radius)),
    )


def _agreed(name: str, values: Iterable[Value]) -> Value:
    value, *others = dict.fromkeys(values)
    if others:
        raise UserError(f"{name}: got {value} and {others[0]}, allowed: the same in the plans that decide it")
    return value


def _served(name: str, given: list[int | tuple[int, ...] | None]) -> int | tuple[int, ...] | None:
    """Of `heads` or `ffn`: what all serve."""
    counts = [units for units in given if isinstance(units, int)]
    lists = [frozenset(units) for units in given if isinstance(units, tuple)]
    if not (counts or lists):
        return None
    common = frozenset.intersection(*lists) if lists else None
    if 0 in counts or (lists and not common):
        return 0
    if counts and lists:
        raise UserError(f"{name}: got a count ({counts[0]}) and a list, allowed: either of them (0 goes with both)")
    return tuple(sorted(common)) if lists else min(counts)
