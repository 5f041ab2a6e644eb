"""YOPO's rule (arXiv 2410.06169): heads by activity, fewer FFN neurons, a neighbourhood, withdrawal in the last layers.

As released: the first two layers keep all heads; elsewhere a head stays by the attention it gives to the image; half of the
FFN neurons stay; visual tokens see a 5 x 5 window, in both directions; deep layers hold text alone. Done otherwise than in
the released code: an unserved head is masked before the softmax, not zeroed after it; neurons stay by what they write on
visual rows, not by index; withdrawn tokens are gone, not masked; text-only samples are left alone (all but the second by
the plan itself, see modeling/visual_plan.py). Activity is a share of all attention here and a quotient of visual to other
attention there, so published thresholds do not carry over.
"""

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedConfig

from modeling.layer_plan import LayerPlan
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.measure.calibration import Calibration
from training.planners.tools.budget import Budget, PlanPrice
from training.planners.tools.moves import served
from training.schema import Strict

LEAST_SHARE = 0.5
"""The heads and neurons that the release keeps at both of its published costs; depth is what it trades."""
SHARE_STEPS = 256


class YopoSettings(Strict):
    """Either a budget, or `withdraw_from`, `ffn_kept` and one of `heads_kept` and `activity_threshold`."""

    planner: Literal["yopo"]
    budget: Budget | None = None
    """Solves the rest: the latest withdrawal at which half of heads and neurons fit, then as many of both as fit."""
    withdraw_from: int | None = Field(default=None, ge=1)
    """First layer without visual tokens."""
    heads_kept: float | None = Field(default=None, ge=0, le=1)
    """Share of the units that stay, the most active over all layers after the whole ones."""
    activity_threshold: float | None = Field(default=None, ge=0, le=1)
    """A sample votes for a unit whose activity in it exceeds this."""
    votes: float = Field(default=0.4, ge=0, lt=1)
    """Share of the samples whose votes a unit needs more than."""
    ffn_kept: float | None = Field(default=None, ge=0, le=1)
    """Share of each layer's FFN neurons that stay."""
    whole_layers: int = Field(default=2, ge=0)
    """First layers that keep all heads, where a budget allows it."""
    radius: int | None = Field(default=2, ge=0)
    bidirectional: bool = True

    @model_validator(mode="after")
    def _one_way(self) -> "YopoSettings":
        heads = [self.heads_kept, self.activity_threshold]
        if self.budget is not None:
            if any(value is not None for value in (self.withdraw_from, self.ffn_kept, *heads)):
                raise ValueError("a budget decides withdraw_from, ffn_kept and the heads: give either it or them")
        elif self.withdraw_from is None or self.ffn_kept is None or heads.count(None) != 1:
            raise ValueError("give a budget, or withdraw_from, ffn_kept and one of heads_kept, activity_threshold")
        return self


def plan_yopo(config: PreTrainedConfig, calibration: Calibration, settings: YopoSettings) -> VisualPlan:
    """The plan by given shares or thresholds, or the one that just meets the budget.

    Raises:
        UserError: `withdraw_from` lies beyond the model's layers.
    """
    if settings.budget is not None:
        return _within_budget(config, calibration, settings)
    num_layers = config.text_config.num_hidden_layers
    if settings.withdraw_from > num_layers:
        raise UserError(f"plan.withdraw_from: got {settings.withdraw_from}, the model has {num_layers} layers")
    if settings.heads_kept is None:
        kept = (calibration.activity > settings.activity_threshold).float().mean(0) > settings.votes  # [L, U]
    else:
        kept = _most_active(calibration.activity, settings.heads_kept, settings.whole_layers, settings.withdraw_from)
    return _plan(calibration, settings, kept, settings.ffn_kept, settings.whole_layers, settings.withdraw_from)


def _within_budget(config: PreTrainedConfig, calibration: Calibration, settings: YopoSettings) -> VisualPlan:
    price = PlanPrice(config)

    def plan(share: float, whole_layers: int, withdraw_from: int) -> VisualPlan:
        kept = _most_active(calibration.activity, share, whole_layers, withdraw_from)
        return _plan(calibration, settings, kept, share, whole_layers, withdraw_from)

    def fits(*arguments) -> bool:
        return price(plan(*arguments)) <= settings.budget.visual_flops

    depths = range(config.text_config.num_hidden_layers, 0, -1)
    # Where not even one layer can be read whole, its heads are thinned as well.
    whole_layers, withdraw_from = next(
        ((settings.whole_layers, depth) for depth in depths if fits(LEAST_SHARE, settings.whole_layers, depth)), (0, 1)
    )
    shares = (step / SHARE_STEPS for step in range(SHARE_STEPS, -1, -1))
    share = next(share for share in shares if fits(share, whole_layers, withdraw_from))
    return plan(share, whole_layers, withdraw_from)


def _most_active(activity: Tensor, share: float, whole_layers: int, withdraw_from: int) -> Tensor:
    """[L, U] bool: the most active units of the layers between the whole ones and the withdrawal; activity [N, L, U]."""
    mean = activity.mean(0)
    mean[:whole_layers] = mean[withdraw_from:] = -1.0
    num_kept = round(share * mean[whole_layers:withdraw_from].numel())
    kept = mean.new_zeros(mean.numel(), dtype=bool)
    kept[mean.flatten().argsort(descending=True, stable=True)[:num_kept]] = True
    return kept.view_as(mean)


def _plan(
    calibration: Calibration,
    settings: YopoSettings,
    kept: Tensor,
    ffn_kept: float,
    whole_layers: int,
    withdraw_from: int,
) -> VisualPlan:
    """The plan whose layers after the whole ones keep the units `kept` [L, U]."""
    num_layers, num_neurons = calibration.neuron_importance.shape
    layers = []
    for index in range(num_layers):
        if index >= withdraw_from:
            layers.append(LayerPlan(tokens=0.0))
            continue
        units = kept[index].nonzero().flatten().tolist()
        order = calibration.neuron_importance[index].argsort(descending=True, stable=True)
        layers.append(
            LayerPlan(
                heads=None if index < whole_layers else served(units, of=kept.shape[1]),
                ffn=served(order[: round(ffn_kept * num_neurons)].tolist(), of=num_neurons),
                radius=settings.radius,
                bidirectional=settings.bidirectional,
            )
        )
    return VisualPlan(layers=tuple(layers))
