"""Stack planner: combines several plans into one that does only the work that all of them do.

A token schedule stacked over narrow layers is an example. Each layer of the result has:

- `tokens`: the smallest share. Where it falls, the ranking of the plans that have this share.
- `attend`, `read`: true where all plans have it true.
- `heads`, `ffn`: what serves visual tokens in all plans. This is the smallest count, or the common part of lists. It is
  none where one plan has none.
- `radius`: the smallest radius, and `bidirectional` of the plans that have it.

Plans may disagree in two ways, and both are refused. Plans that decide a field may give it different values, which
happens with `rank` and `bidirectional`. And one plan may give a count where another gives a list. A count refers to the
order of units in an exported checkpoint, and a list to the units of the dense model.

In the result, lists are sorted, and a layer has a ranking only where tokens are ranked. Apart from that, the order
and the grouping of plans change nothing. Adding the dense plan changes nothing, and neither does stacking a plan on
itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field

from modeling.layer_plan import LayerPlan, Rank, Served
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.measure.budget import Budget
from training.planners.planner import Planner

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from training.measure.latency import LatencyTable
    from training.planners import StackablePlanner
    from training.planners.tools.search import Search

Value = TypeVar("Value")


class StackPlanner(Planner):
    """Combines the plans of several planners into one that does only the work that all of them do.

    Each planner finds its plan for the dense model and within its own budget.
    """

    combines_planners = True
    planner: Literal["stack"]
    of: tuple[StackablePlanner, ...] = Field(min_length=2)
    """The settings of the planners whose plans are combined."""

    @property
    def bounds(self) -> tuple[Budget, ...]:
        return tuple(bound for planner in self.of for bound in planner.bounds)

    @property
    def keeps_plan(self) -> bool:
        return any(planner.keeps_plan for planner in self.of)

    @property
    def needs_statistics(self) -> bool:
        return any(planner.needs_statistics for planner in self.of)

    @property
    def needs_unit_kl(self) -> bool:
        return any(planner.needs_unit_kl for planner in self.of)

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan | None:
        """Returns the plan if the config decides every plan that is stacked, otherwise None.

        Raises:
            UserError: as `stacked` and the planners.
        """
        plans = [planner.plan_of_config(config, latency) for planner in self.of]
        return None if None in plans else stacked(plans)

    def plan_of_same_cost(self, config: PreTrainedConfig) -> VisualPlan | None:
        """Returns a plan that costs as much as the plan that will be found.

        Returns None if two plans have lists of units, because only calibration tells which units they have in common.

        Raises:
            UserError: as `stacked` and the planners.
        """
        plans = [planner.plan_of_same_cost(config) for planner in self.of]
        is_decided = None not in plans and sum(not plan.is_integer for plan in plans) < 2
        return stacked(plans) if is_decided else None

    def find(self, search: Search) -> VisualPlan:
        """Returns the planners' plans, stacked.

        Raises:
            UserError: as `stacked` and the planners.
        """
        return stacked([planner.find(search.subsearch(str(index))) for index, planner in enumerate(self.of)])


def stacked(plans: Sequence[VisualPlan]) -> VisualPlan:
    """Returns the plan that does only the work that all of `plans` do.

    Raises:
        UserError: the plans have different numbers of layers or disagree, or tokens would be ranked by the attention
            of a layer that another plan shuts.
    """
    if len({len(plan) for plan in plans}) > 1:
        lengths = " and ".join(str(len(plan)) for plan in plans)
        raise UserError(f"plan.of: got plans of {lengths} layers, allowed: of one model")
    stacked_layers, tokens_before = [], 1.0
    for index, layers in enumerate(zip(*(plan.layers for plan in plans), strict=True)):
        try:
            stacked_layers.append(_stacked_layer(layers, tokens_before))
        except UserError as error:
            raise UserError(f"plan.of: layer {index}: {error}") from None
        tokens_before = stacked_layers[-1].tokens
    return VisualPlan(layers=tuple(stacked_layers))


def _stacked_layer(layers: Sequence[LayerPlan], tokens_before: float) -> LayerPlan:
    """Returns one layer of the result, given that layer of each plan and the share that the layer before carries."""
    tokens = min(layer.tokens for layer in layers)
    falls = 0 < tokens < tokens_before
    radius = min((layer.radius for layer in layers if layer.radius is not None), default=None)
    return LayerPlan(
        tokens=tokens,
        rank=_agreed_value("rank", (layer.rank for layer in layers if layer.tokens == tokens)) if falls else Rank(),
        attend=all(layer.attend for layer in layers),
        read=all(layer.read for layer in layers),
        heads=_common_units("heads", [layer.heads for layer in layers]),
        ffn=_common_units("ffn", [layer.ffn for layer in layers]),
        radius=radius,
        bidirectional=_agreed_value(
            "bidirectional", (layer.bidirectional for layer in layers if layer.radius == radius)
        ),
    )


def _agreed_value(name: str, values: Iterable[Value]) -> Value:
    """Returns the one value of the field `name`. Raises UserError if there are several."""
    value, *others = dict.fromkeys(values)
    if others:
        raise UserError(f"{name}: got {value} and {others[0]}, allowed: the same in the plans that decide it")
    return value


def _common_units(name: str, values: list[Served | None]) -> Served | None:
    """Returns the value of `heads` or `ffn` that names what serves in all plans.

    Raises:
        UserError: one plan has a count and another a list.
    """
    counts = [units for units in values if isinstance(units, int)]
    lists = [frozenset(units) for units in values if isinstance(units, tuple)]
    if not (counts or lists):
        return None
    common = frozenset.intersection(*lists) if lists else None
    if 0 in counts or (lists and not common):
        return 0
    if counts and lists:
        raise UserError(f"{name}: got a count ({counts[0]}) and a list, allowed: either of them (0 goes with both)")
    return tuple(sorted(common)) if lists else min(counts)
