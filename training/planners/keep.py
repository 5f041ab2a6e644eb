"""Keep planner: the plan of the sparse checkpoint that students start from, as it is.

Stacked with another planner's, it tightens a budget, and what the checkpoint has shut stays shut
(training/planners/stack.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.planners.planner import Planner

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from modeling.layer_plan import Served
    from training.measure.latency import LatencyTable


class KeepPlanner(Planner):
    """Keeps the plan of the sparse checkpoint in `model.path`."""

    planner: Literal["keep"]

    @property
    def keeps_plan(self) -> bool:
        return True

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan:
        """Returns the checkpoint's plan. Its first n units and neurons are named one by one, as searches name them.

        Raises:
            UserError: the model is dense.
        """
        given, text = getattr(config, "visual_plan", None), config.text_config
        if given is None:
            raise UserError(
                "plan.planner: got keep, allowed: where model.path is a sparse checkpoint, which has a plan"
            )
        plan = VisualPlan.from_dict(given)
        plan.check(text.num_hidden_layers, text.num_key_value_heads, text.intermediate_size)
        layers = (
            replace(
                layer,
                heads=_named(layer.heads, text.num_key_value_heads),
                ffn=_named(layer.ffn, text.intermediate_size),
            )
            for layer in plan.layers
        )
        return VisualPlan(layers=tuple(layers))


def _named(units: Served | None, total: int) -> Served | None:
    """Returns a plan's `heads` or `ffn` with a list in place of a count. All of `total` units are None, none is 0."""
    if not isinstance(units, int) or units == 0:
        return units
    return None if units == total else tuple(range(units))
