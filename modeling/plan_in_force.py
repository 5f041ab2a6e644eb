"""The plan that a decoder runs under, and what follows from it for every layer.

A decoder has a plan of its own. A caller may put another one in its place for a while. That holds in the caller's
thread or task alone, as `torch.no_grad` does, so that threads may ask one model under different plans at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType

import torch
from torch import nn
from transformers import PreTrainedConfig

from .layer_plan import Rank
from .visual_plan import LiveLayer, VisualPlan
from .visual_units import UnitSplit


@dataclass(frozen=True, eq=False)
class PlanInForce:
    """A plan, and what follows from it for a decoder.

    Attributes:
        plan: the plan.
        live: what each layer executes.
        units: the split of each layer's heads by the units that serve visual tokens.
        neurons: FFN neurons of each layer that serve visual tokens, the first n or indices.
        stages: the layers in stages. A stage is a run of layers that carry the same visual tokens.
        ranks_after: how visual tokens are ranked by each layer's attention, or None where they are not.
    """

    plan: VisualPlan
    live: tuple[LiveLayer, ...]
    units: tuple[UnitSplit, ...]
    neurons: tuple[int | torch.Tensor, ...]
    stages: tuple[tuple[int, ...], ...]
    ranks_after: tuple[Rank | None, ...]

    @classmethod
    def of(cls, plan: VisualPlan, config: PreTrainedConfig, head_dims: Sequence[int]) -> "PlanInForce":
        """Returns what follows for a decoder with this config. Raises UserError if the plan does not fit it.

        Args:
            head_dims: the head_dim of each layer.
        """
        plan.check(config.num_hidden_layers, config.num_key_value_heads, config.intermediate_size)
        live = plan.live(config.num_key_value_heads, config.intermediate_size)
        group = config.num_attention_heads // config.num_key_value_heads
        return cls(
            plan=plan,
            live=live,
            units=tuple(
                UnitSplit(layer.heads, config.num_key_value_heads, group, head_dim)
                for layer, head_dim in zip(live, head_dims, strict=True)
            ),
            neurons=tuple(layer.ffn if isinstance(layer.ffn, int) else torch.tensor(layer.ffn) for layer in live),
            stages=tuple(tuple(run) for _, run in groupby(range(len(live)), key=lambda index: live[index].tokens)),
            ranks_after=(*map(_rank_by_attention, live[1:]), None),
        )


_used: ContextVar[Mapping[nn.Module, PlanInForce]] = ContextVar("plans in use", default=MappingProxyType({}))
"""Of each decoder that has a plan in place of its own, that plan."""


def plan_in_use(decoder: nn.Module) -> PlanInForce | None:
    """Returns the plan that this thread or task has put in place of the decoder's own, or None."""
    return _used.get().get(decoder)


@contextmanager
def using(decoder: nn.Module, in_force: PlanInForce) -> Iterator[None]:
    """Puts a plan in place of the decoder's own inside the block, in this thread or task alone."""
    token = _used.set({**_used.get(), decoder: in_force})
    try:
        yield
    finally:
        _used.reset(token)


def _rank_by_attention(live: LiveLayer) -> Rank | None:
    """Returns how a layer ranks tokens by the attention of the layer before, or None if it does not."""
    return live.rank if live.keep and live.rank.by_attention else None
