"""The steps between plans: how a search closes visual work, and opens it again.

A search walks over plans that *count* units and neurons (`heads: 3`, the three most important of that layer);
`Moves.with_units` names them by the calibrated order. Blind layers at the end of the stack are a withdrawal and written as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from modeling.layer_plan import LayerPlan
from modeling.visual_plan import VisualPlan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from training.measure.calibration import Calibration

NUM_HEAD_STEPS = 8
"""A layer's units are shut and opened one by one, or where it has more than this many, in this many groups."""
FFN_SHARES = (1.0, 0.5, 0.25, 0.125, 0.0)
RADII = (8, 4, 2, 1, 0)

FREEZE = {"attend": False, "ffn": 0}
IDLE = {"read": False, **FREEZE}

Move = tuple[str, int]
"""What changes, and in which layer."""


def served(units: Sequence[int], of: int) -> int | tuple[int, ...] | None:
    """Indices of served units or neurons as a plan writes them: None for all `of` them, 0 for none."""
    if len(units) == of:
        return None
    return tuple(sorted(units)) if units else 0


class Moves:
    """Every move of one model, and the names of the units and neurons that counts stand for.

    Args:
        config: sizes of the decoder.
        calibration: orders units by `unit_kl` and neurons by `neuron_importance`, the most important first, and says how far
            apart tokens of a picture are.
    """

    def __init__(self, config: PreTrainedConfig, calibration: Calibration):
        text = config.text_config
        steps = min(NUM_HEAD_STEPS, text.num_key_value_heads)
        self._head_rungs = [round(text.num_key_value_heads * step / steps) for step in range(steps, 0, -1)]
        self._ffn_rungs = [round(text.intermediate_size * share) for share in FFN_SHARES]
        farthest = calibration.neighborhood.shape[1] - 1
        self._radius_rungs = [None, *(radius for radius in RADII if radius < farthest)]
        self._unit_order = calibration.unit_kl.argsort(dim=1, descending=True, stable=True).tolist()
        self._neuron_order = calibration.neuron_importance.argsort(dim=1, descending=True, stable=True).tolist()
        full = LayerPlan(heads=self._head_rungs[0], ffn=self._ffn_rungs[0])
        self.dense = VisualPlan(layers=(full,) * text.num_hidden_layers)

    @property
    def all_frozen(self) -> VisualPlan:
        """No visual token is ever updated, and every layer's text reads them as the projector left them."""
        return VisualPlan(layers=tuple(replace(layer, **FREEZE) for layer in self.dense.layers))

    def closings(self, plan: VisualPlan) -> Iterator[tuple[Move, VisualPlan]]:
        """Plans with less visual work, one move away (some moves may save nothing)."""
        for index, layer in enumerate(plan.layers):
            for name, changes in self._less(layer):
                yield (name, index), plan.replace(index, **changes)
            yield (
                ("withdraw", index),
                VisualPlan(layers=plan.layers[:index] + tuple(replace(later, **IDLE) for later in plan.layers[index:])),
            )

    def openings(self, plan: VisualPlan) -> Iterator[tuple[Move, VisualPlan]]:
        """Plans with more visual work, one move away."""
        for index, layer in enumerate(plan.layers):
            for name, changes in self._more(layer):
                yield (name, index), plan.replace(index, **changes)

    def with_units(self, plan: VisualPlan) -> VisualPlan:
        """The plan with its counts as lists of indices into the dense weights, and a blind tail as a withdrawal."""
        last_read = max((index for index, layer in enumerate(plan.layers) if layer.read), default=-1)
        layers = [
            replace(
                layer,
                heads=served(self._unit_order[index][: layer.heads], of=len(self._unit_order[index])),
                ffn=served(self._neuron_order[index][: layer.ffn], of=len(self._neuron_order[index])),
            )
            if index <= last_read
            else LayerPlan(tokens=0.0)
            for index, layer in enumerate(plan.layers)
        ]
        return VisualPlan(layers=tuple(layers))

    def _less(self, layer: LayerPlan) -> Iterator[tuple[str, dict]]:
        if layer.attend:
            yield "stop attention", {"attend": False}
            if narrower := _after(self._radius_rungs, layer.radius):
                yield "shrink radius", {"radius": narrower[0]}
        if layer.ffn:
            yield "stop ffn", {"ffn": 0}
            if fewer := _after(self._ffn_rungs, layer.ffn):
                yield "narrow ffn", {"ffn": fewer[0]}
        if layer.attend and layer.ffn:
            yield "freeze", FREEZE
        if layer.read:
            yield "blind", {"read": False}
            if layer.attend or layer.ffn:
                yield "idle", IDLE
        if fewer := _after(self._head_rungs, layer.heads):
            yield "shut unit", {"heads": fewer[0]}

    def _more(self, layer: LayerPlan) -> Iterator[tuple[str, dict]]:
        if not layer.attend:
            yield "attend", {"attend": True}
        elif wider := _before(self._radius_rungs, layer.radius):
            yield "widen radius", {"radius": wider[-1]}
        if wider := _before(self._ffn_rungs, layer.ffn):
            yield "widen ffn", {"ffn": wider[-1]}
            yield "whole ffn", {"ffn": wider[0]}
        if not layer.read:
            yield "read", {"read": True}
        if more := _before(self._head_rungs, layer.heads):
            yield "open unit", {"heads": more[-1]}


def _after(rungs: list, rung) -> list:
    return rungs[rungs.index(rung) + 1 :]


def _before(rungs: list, rung) -> list:
    return rungs[: rungs.index(rung)]
