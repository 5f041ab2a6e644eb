"""VTW (arXiv 2405.05803): all visual tokens are withdrawn at one layer, the first at which answers hardly change.

The change is measured as the KL in fp32 at every answer token. With `at: prompt` it is the released code's measure: the
reverse KL at the last token before an answer. The released code takes the first layer within its tolerance, and
measures it on data of the task without checking the result on other data. Here all later layers must be within the
tolerance too, and some samples are held out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from modeling.visual_plan import VisualPlan
from training.files import write_json
from training.planners.planner import SolvingPlanner
from training.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from training.measure.latency import LatencyTable
    from training.planners.tools.search import Search

CURVE = "curve.json"
"""Name of the file in the folder of a search that holds the measured curve."""
KL_SETTINGS = ("at", "for_all_later", "hold_out")
"""Settings of the KL. They are refused where a budget decides, because no KL is measured then."""


class VtwPlanner(SolvingPlanner):
    """VTW (arXiv 2405.05803): withdraws all visual tokens at one layer.

    Takes either `budget` or `tolerance`. A budget takes the last layer at which the withdrawal fits, without measuring.
    """

    solves = "tolerance"
    plot = "withdrawals"
    planner: Literal["vtw"]
    tolerance: float | None = Field(default=None, ge=0)
    """Largest mean KL that is allowed, in nats. The paper uses, with at: prompt, 0.003 for LLaVA-1.5-7B, 0.0005 for
    LLaVA-1.5-13B and 0.0001 for LLaVA-NeXT-7B. Null: the budget decides."""
    at: Literal["answers", "prompt"] = "answers"
    """Where the KL is measured, and in which direction. answers: KL(dense || withdrawn) over all tokens of answers.
    prompt: KL(withdrawn || dense) at the last token before each answer, as in the released code."""
    for_all_later: bool = True
    """Whether withdrawals at all later layers must be within the tolerance too. The released code uses false."""
    hold_out: float = Field(default=0.25, ge=0, lt=1)
    """Share of the calibration samples that do not decide the layer. The KL on them is reported, and tells what to
    expect on new data."""

    @model_validator(mode="after")
    def _measured_or_not(self) -> VtwPlanner:
        changed = [name for name in KL_SETTINGS if getattr(self, name) != type(self).model_fields[name].default]
        if self.budget is not None and changed:
            raise ValueError(f"a budget decides without measuring: {', '.join(changed)} go with tolerance")
        return self

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan | None:
        """Returns the plan of the latest withdrawal within the budget.

        Returns None if a tolerance decides, and for a budget of latency without timings.

        Raises:
            UserError: all tokens in the first layer alone exceed the budget.
        """
        if self.budget is None:
            return None
        num_layers = config.text_config.num_hidden_layers
        layers = range(1, num_layers + 1)
        cheapest = "all tokens in the first layer alone"
        return self.largest_within_budget(
            config, latency, layers, lambda layer: _withdrawal_plan(layer, num_layers), cheapest
        )

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan of the first withdrawal within the tolerance, or the dense plan if there is none.

        Writes the measured curve into the search's folder.

        Raises:
            UserError: the samples that are held out, or the others, have no answer.
        """
        if self.budget is not None:
            return super().find(search)
        from training.planners.tools.withdrawal import withdrawal_curve
        from training.ranks import in_order

        curve = withdrawal_curve(in_order(search.on_all_ranks("withdrawals", self.at)), self.hold_out)
        if search.folder is not None:
            write_json(search.folder / CURVE, curve)
        chosen = _first_within_tolerance(curve, self.tolerance, self.for_all_later)
        layer, num_layers, held = chosen["layer"], len(curve), chosen["kl_hold_out"]
        if layer == num_layers:
            Progress.write("vtw plan: dense, no withdrawal is within the tolerance")
        else:
            on_others = "" if held is None else f", {held:.3g} on held-out samples"
            Progress.write(f"vtw plan: text alone from layer {layer} of {num_layers}, KL {chosen['kl']:.3g}{on_others}")
        return _withdrawal_plan(layer, num_layers)


def _first_within_tolerance(curve: list[dict], tolerance: float, for_all_later: bool) -> dict:
    """Returns the first point of the curve within the tolerance. The last point, without withdrawal, always is."""
    within = [point["kl"] <= tolerance for point in curve]
    return next(
        point
        for index, point in enumerate(curve)
        if all(within[index:] if for_all_later else within[index : index + 1])
    )


def _withdrawal_plan(layer: int, num_layers: int) -> VisualPlan:
    """Returns the plan without visual tokens from `layer` on. At `num_layers` it is the dense plan."""
    dense = VisualPlan.dense(num_layers)
    return dense if layer == num_layers else dense.replace(layer, tokens=0.0)
