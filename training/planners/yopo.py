"""YOPO's rule (arXiv 2410.06169): heads by activity, fewer FFN neurons, a neighbourhood, withdrawal in the last layers.

As released: the first two layers keep all heads; elsewhere a head stays by the attention it gives to the image; half of the
FFN neurons stay; visual tokens see a 5 x 5 window, in both directions; deep layers hold text alone. Done otherwise than in
the released code: an unserved head is masked before the softmax, not zeroed after it; neurons stay by what they write on
visual rows, not by index; withdrawn tokens are gone, not masked; text-only samples are left alone (all but the second by
the plan itself, see modeling/visual_plan.py). Activity is a share of all attention here and a quotient of visual to other
attention there, so published thresholds do not carry over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from modeling.layer_plan import LayerPlan
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.measure.budget import Budget
from training.planners.planner import Planner
from training.planners.tools.moves import served

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

    from training.measure.calibration import Calibration
    from training.measure.price import PlanPrice
    from training.planners.tools.search import Search

LEAST_SHARE = 0.5
"""The heads and neurons that the release keeps at both of its published costs; depth is what it trades."""
SHARE_STEPS = 256


class YopoPlanner(Planner):
    """Either a budget, or `withdraw_from`, `ffn_kept` and one of `heads_kept` and `activity_threshold`."""

    reads_statistics = True
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
    def _one_way(self) -> YopoPlanner:
        heads = [self.heads_kept, self.activity_threshold]
        if self.budget is not None:
            if any(value is not None for value in (self.withdraw_from, self.ffn_kept, *heads)):
                raise ValueError("a budget decides withdraw_from, ffn_kept and the heads: give either it or them")
        elif self.withdraw_from is None or self.ffn_kept is None or heads.count(None) != 1:
            raise ValueError("give a budget, or withdraw_from, ffn_kept and one of heads_kept, activity_threshold")
        return self

    @property
    def bound(self) -> Budget | None:
        return self.budget

    def plan_of_same_cost(self, config: PreTrainedConfig) -> VisualPlan | None:
        """Returns the plan of a model whose layers are all equally active; None for a budget of latency.

        Calibration decides which heads and neurons stay. The cost depends on how many.

        Raises:
            UserError: with `activity_threshold`, since only calibration tells how many heads pass it.
        """
        if self.activity_threshold is not None:
            raise UserError(
                "plan.activity_threshold: only calibration can tell how many heads pass it; give heads_kept for a dry run"
            )
        if self.budget is not None and self.budget.measure == "latency":
            return None
        import torch

        from training.measure.calibration import Calibration
        from training.measure.price import PlanPrice

        text = config.text_config
        layers, units, neurons = text.num_hidden_layers, text.num_key_value_heads, text.intermediate_size
        flat = Calibration(
            activity=torch.linspace(1, 0, units).expand(1, layers, units),
            neuron_importance=torch.zeros(layers, neurons),
            neighborhood=torch.ones(layers, 1),
            unit_kl=torch.zeros(layers, units),
        )
        return self._plan_of(config, flat, self.budget and PlanPrice(config, self.budget.measure))

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan by given shares or thresholds, or the one that just meets the budget.

        Raises:
            UserError: `withdraw_from` lies beyond the model's layers.
        """
        return self._plan_of(search.config, search.calibration, self.budget and search.price_within(self.budget))

    def _plan_of(self, config: PreTrainedConfig, calibration: Calibration, price: PlanPrice | None) -> VisualPlan:
        if price is not None:
            return self._within_budget(config, calibration, price)
        num_layers = config.text_config.num_hidden_layers
        if self.withdraw_from > num_layers:
            raise UserError(f"plan.withdraw_from: got {self.withdraw_from}, the model has {num_layers} layers")
        if self.heads_kept is None:
            kept = (calibration.activity > self.activity_threshold).float().mean(0) > self.votes  # [L, U]
        else:
            kept = _most_active(calibration.activity, self.heads_kept, self.whole_layers, self.withdraw_from)
        return _plan(calibration, self, kept, self.ffn_kept, self.whole_layers, self.withdraw_from)

    def _within_budget(self, config: PreTrainedConfig, calibration: Calibration, price: PlanPrice) -> VisualPlan:
        def plan(share: float, whole_layers: int, withdraw_from: int) -> VisualPlan:
            kept = _most_active(calibration.activity, share, whole_layers, withdraw_from)
            return _plan(calibration, self, kept, share, whole_layers, withdraw_from)

        def fits(*arguments) -> bool:
            return price(plan(*arguments)) <= self.budget.share

        depths = range(config.text_config.num_hidden_layers, 0, -1)
        # Where not even one layer can be read whole, its heads are thinned as well.
        whole_layers, withdraw_from = next(
            ((self.whole_layers, depth) for depth in depths if fits(LEAST_SHARE, self.whole_layers, depth)), (0, 1)
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
    settings: YopoPlanner,
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
