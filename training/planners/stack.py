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

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from modeling.layer_plan import LayerPlan, Rank
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.planners.fastv import FastvSettings
from training.planners.file import FileSettings
from training.planners.g_search import GSearchSettings
from training.planners.greedy import GreedySettings
from training.planners.himap import HimapSettings
from training.planners.p_sigmoid import PSigmoidSettings
from training.planners.pre_pruning import PrePruningSettings
from training.planners.pyramid_drop import PyramidDropSettings
from training.planners.random_plan import RandomSettings
from training.planners.shortv import ShortvSettings
from training.planners.uniform import UniformSettings
from training.planners.vica import VicaSettings
from training.planners.vtw import VtwSettings
from training.planners.yopo import YopoSettings
from training.schema import Strict

Part = (
    GreedySettings
    | YopoSettings
    | ShortvSettings
    | VicaSettings
    | VtwSettings
    | FastvSettings
    | PyramidDropSettings
    | HimapSettings
    | PSigmoidSettings
    | GSearchSettings
    | PrePruningSettings
    | UniformSettings
    | RandomSettings
    | FileSettings
)
"""Of the planners that find a plan of their own, without training."""
Value = TypeVar("Value")


class StackSettings(Strict):
    """Plans found one by one, each for the dense model and within its own budget, then stacked."""

    planner: Literal["stack"]
    of: tuple[Annotated[Part, Field(discriminator="planner")], ...] = Field(min_length=2)


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
