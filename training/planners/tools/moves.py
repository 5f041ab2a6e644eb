"""Moves are the steps from plan to plan by which a search closes visual work and opens it again.

A search goes through plans that *count* units and neurons. `heads: 3` means the three most important units of that
layer. `Moves.with_units` replaces the counts by indices, in the calibrated order. If text reads no visual tokens from
some layer on, `Moves.with_units` writes this as a withdrawal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modeling.layer_plan import LayerPlan, Served
from modeling.visual_plan import VisualPlan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from training.measure.calibration import Calibration

NUM_HEAD_STEPS = 8
"""Units of a layer are shut and opened one by one. A layer with more units shuts and opens them in this many groups."""
FFN_SHARES = (1.0, 0.5, 0.25, 0.125, 0.0)
"""Shares of a layer's FFN neurons that a search considers."""
RADII = (8, 4, 2, 1, 0)
"""Radii that a search considers, as Chebyshev distances in the picture's grid."""

FREEZE = {"attend": False, "ffn": 0}
"""Changes of a layer after which it does not update visual tokens."""
IDLE = {"read": False, **FREEZE}
"""Changes of a layer after which it does nothing for visual tokens."""

Move = tuple[str, int]
"""The name of a move and the index of the layer that it changes."""


def frozen_plan(num_layers: int) -> VisualPlan:
    """Returns the plan that updates no visual token. Text of every layer reads them as the projector left them."""
    return VisualPlan(layers=(LayerPlan(**FREEZE),) * num_layers)


def served_value(indices: Sequence[int], total: int) -> Served | None:
    """Returns the value of a plan's `heads` or `ffn` for the units or neurons with these indices.

    It is None for all `total` of them, and 0 for none.
    """
    if len(indices) == total:
        return None
    return tuple(sorted(indices)) if indices else 0


class Moves:
    """All moves between the plans of one model.

    Args:
        config: config of the model, with the sizes of the decoder.
        calibration: statistics of the model. Units are ordered by `unit_kl` and neurons by `neuron_importance`, the
            most important first. `neighborhood` tells the largest distance of two tokens in a picture.
    """

    def __init__(self, config: PreTrainedConfig, calibration: Calibration):
        text = config.text_config
        steps = min(NUM_HEAD_STEPS, text.num_key_value_heads)
        self._head_counts = [round(text.num_key_value_heads * step / steps) for step in range(steps, 0, -1)]
        self._ffn_counts = [round(text.intermediate_size * share) for share in FFN_SHARES]
        farthest = calibration.neighborhood.shape[1] - 1
        self._radii = [None, *(radius for radius in RADII if radius < farthest)]
        self._unit_order = calibration.unit_kl.argsort(dim=1, descending=True, stable=True).tolist()
        self._neuron_order = calibration.neuron_importance.argsort(dim=1, descending=True, stable=True).tolist()
        full = LayerPlan(heads=self._head_counts[0], ffn=self._ffn_counts[0])
        self.dense = VisualPlan(layers=(full,) * text.num_hidden_layers)

    @property
    def all_frozen(self) -> VisualPlan:
        """The plan that updates no visual token. Text of every layer reads them as the projector left them."""
        return VisualPlan(layers=tuple(replace(layer, **FREEZE) for layer in self.dense.layers))

    def closings(self, plan: VisualPlan) -> Iterator[tuple[Move, VisualPlan]]:
        """Yields moves that leave less visual work, each with the plan after it. Some of them may save nothing."""
        for index, layer in enumerate(plan.layers):
            for name, changes in self._closing_changes(layer):
                yield (name, index), plan.replace(index, **changes)
            yield (
                ("withdraw", index),
                VisualPlan(layers=plan.layers[:index] + tuple(replace(later, **IDLE) for later in plan.layers[index:])),
            )

    def openings(self, plan: VisualPlan) -> Iterator[tuple[Move, VisualPlan]]:
        """Yields moves that add visual work, each with the plan after it."""
        for index, layer in enumerate(plan.layers):
            for name, changes in self._opening_changes(layer):
                yield (name, index), plan.replace(index, **changes)

    def with_units(self, plan: VisualPlan) -> VisualPlan:
        """Returns a plan that counts with its counts replaced by indices into the dense weights.

        Layers after the last one that text reads become a withdrawal.
        """
        last_read = max((index for index, layer in enumerate(plan.layers) if layer.read), default=-1)
        layers = [
            replace(
                layer,
                heads=served_value(self._unit_order[index][: layer.heads], total=len(self._unit_order[index])),
                ffn=served_value(self._neuron_order[index][: layer.ffn], total=len(self._neuron_order[index])),
            )
            if index <= last_read
            else LayerPlan(tokens=0.0)
            for index, layer in enumerate(plan.layers)
        ]
        return VisualPlan(layers=tuple(layers))

    def _closing_changes(self, layer: LayerPlan) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the name of each closing move within a layer, and the fields that it changes."""
        if layer.attend:
            yield "stop attention", {"attend": False}
            if narrower := _after(self._radii, layer.radius):
                yield "shrink radius", {"radius": narrower[0]}
        if layer.ffn:
            yield "stop ffn", {"ffn": 0}
            if fewer := _after(self._ffn_counts, layer.ffn):
                yield "narrow ffn", {"ffn": fewer[0]}
        if layer.attend and layer.ffn:
            yield "freeze", FREEZE
        if layer.read:
            yield "blind", {"read": False}
            if layer.attend or layer.ffn:
                yield "idle", IDLE
        if fewer := _after(self._head_counts, layer.heads):
            yield "shut unit", {"heads": fewer[0]}

    def _opening_changes(self, layer: LayerPlan) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the name of each opening move within a layer, and the fields that it changes."""
        if not layer.attend:
            yield "attend", {"attend": True}
        elif wider := _before(self._radii, layer.radius):
            yield "widen radius", {"radius": wider[-1]}
        if wider := _before(self._ffn_counts, layer.ffn):
            yield "widen ffn", {"ffn": wider[-1]}
            yield "whole ffn", {"ffn": wider[0]}
        if not layer.read:
            yield "read", {"read": True}
        if more := _before(self._head_counts, layer.heads):
            yield "open unit", {"heads": more[-1]}


def _after(values: list, value) -> list:
    """Returns the values that come after this one."""
    return values[values.index(value) + 1 :]


def _before(values: list, value) -> list:
    """Returns the values that come before this one."""
    return values[: values.index(value)]
