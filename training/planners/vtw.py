"""VTW's rule (arXiv 2405.05803): all visual tokens are withdrawn at one layer, the first at which answers barely change.

What changes is measured as KL, in fp32, at every answer token; `at: prompt` is the released code's measure, the reverse KL at
the last token before an answer. The released code takes the first layer within its tolerance, on task data that nothing
checks; here all later layers must be within it too, and some samples are held out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from tqdm.auto import tqdm

from modeling.visual_plan import VisualPlan
from training.files import write_json
from training.planners.planner import SolvingPlanner

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from training.measure.latency import LatencyTable
    from training.planners.tools.search import Search

CURVE = "curve.json"
"""The measured curve's file in the folder of a search."""
OF_THE_KL = ("at", "for_all_later", "hold_out")
"""Settings that mean nothing where a budget decides."""


class VtwPlanner(SolvingPlanner):
    """Either a budget or `tolerance`. With a budget: the last layer at which a withdrawal fits; nothing is measured."""

    solves = "tolerance"
    plot = "withdrawals"
    planner: Literal["vtw"]
    tolerance: float | None = Field(default=None, ge=0)
    """Largest mean KL, in nats. Published, for `at: prompt`: 0.003 for LLaVA-1.5-7B, 0.0005 for 13B, 0.0001 for NeXT-7B."""
    at: Literal["answers", "prompt"] = "answers"
    """answers: KL(dense || withdrawn) at every token that predicts an answer's; prompt: KL(withdrawn || dense) at the last
    token before each answer."""
    for_all_later: bool = True
    """A withdrawal at any later layer must be within the tolerance too; false: the released code's rule."""
    hold_out: float = Field(default=0.25, ge=0, lt=1)
    """Share of the calibration samples that have no say: the KL on them tells what to expect of new data."""

    @model_validator(mode="after")
    def _measured_or_not(self) -> VtwPlanner:
        changed = [name for name in OF_THE_KL if getattr(self, name) != type(self).model_fields[name].default]
        if self.budget is not None and changed:
            raise ValueError(f"a budget decides without measuring: {', '.join(changed)} go with tolerance")
        return self

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan | None:
        """Returns the latest withdrawal within the budget; None where a tolerance decides.

        Raises:
            UserError: no withdrawal after the first layer fits the budget.
        """
        if self.budget is None:
            return None
        num_layers = config.text_config.num_hidden_layers
        layers = range(1, num_layers + 1)
        least = "all tokens in the first layer alone"
        return self.largest_within_budget(config, latency, layers, lambda layer: _withdrawn(layer, num_layers), least)

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan of the first layer within the tolerance, the dense one where no layer is.

        Leaves the measured curve in the search's folder.

        Raises:
            UserError: one side of `hold_out` is left without an answer.
        """
        if self.budget is not None:
            return super().find(search)
        from training.planners.tools.withdrawal import withdrawal_curve

        curve = withdrawal_curve(search.model, search.batches, self.at, self.hold_out)
        if search.folder is not None:
            write_json(search.folder / CURVE, curve)
        chosen = _first_within(curve, self.tolerance, self.for_all_later)
        layer, num_layers, held = chosen["layer"], len(curve), chosen["kl_hold_out"]
        if layer == num_layers:
            tqdm.write("vtw plan: dense, no withdrawal is within the tolerance")
        else:
            on_others = "" if held is None else f", {held:.3g} on held-out samples"
            tqdm.write(f"vtw plan: text alone from layer {layer} of {num_layers}, KL {chosen['kl']:.3g}{on_others}")
        return _withdrawn(layer, num_layers)


def _first_within(curve: list[dict], tolerance: float, for_all_later: bool) -> dict:
    """The first point within the tolerance; the last one, without withdrawal, always is."""
    within = [point["kl"] <= tolerance for point in curve]
    return next(
        point
        for index, point in enumerate(curve)
        if all(within[index:] if for_all_later else within[index : index + 1])
    )


def _withdrawn(layer: int, num_layers: int) -> VisualPlan:
    """The plan without visual tokens from `layer` on; at `num_layers` the dense one."""
    dense = VisualPlan.dense(num_layers)
    return dense if layer == num_layers else dense.replace(layer, tokens=0.0)
