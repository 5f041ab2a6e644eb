"""YOPO (arXiv 2410.06169): fewer heads and FFN neurons, a neighbourhood in the picture, withdrawal in the last layers.

As released: the first two layers keep all heads. In later layers, a head stays if it gives enough attention to the
picture. Half of the FFN neurons stay. A visual token sees a window of 5 x 5 tokens, in both directions. Deep layers
hold text alone.

The released code does some things otherwise. The first three differences hold for every plan (modeling/visual_plan.py).

- It zeroes a head that does not serve, after the softmax. Here the head is masked before the softmax.
- It masks withdrawn tokens. Here they are removed.
- It changes text-only samples too. Here they are left alone.
- It keeps the first FFN neurons by index. Here those stay that write most on visual rows.
- It measures activity as the quotient of attention to visual and to other tokens. Here activity is the share of all
  attention, so published thresholds do not carry over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from modeling.layer_plan import LayerPlan
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.measure.budget import Budget
from training.planners.planner import Planner
from training.planners.tools.moves import served_value

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

    from training.measure.calibration import Calibration
    from training.measure.price import PlanPrice
    from training.planners.tools.search import Search

RELEASED_SHARE = 0.5
"""Share of heads and neurons that the released code keeps at both published costs. The costs differ by depth alone."""
SHARE_STEPS = 256


class YopoPlanner(Planner):
    """YOPO (arXiv 2410.06169): fewer heads and neurons, a neighbourhood in the picture, withdrawal in the last layers.

    Takes either `budget`, or `withdraw_from`, `ffn_kept` and one of `heads_kept` and `activity_threshold`.
    """

    reads_statistics = True
    planner: Literal["yopo"]
    budget: Budget | None = None
    """The most that the plan may cost. It decides first the latest withdrawal at which half of the heads and neurons
    fit, then the share of both. Null: the other settings decide what the plan costs."""
    withdraw_from: int | None = Field(default=None, ge=1)
    """First layer without visual tokens, counted from 0. Null: the budget decides."""
    heads_kept: float | None = Field(default=None, ge=0, le=1)
    """Share of the key/value head units that keep serving visual tokens. The most active stay, counted over all layers
    between the whole ones and the withdrawal. Null: the budget or `activity_threshold` decides."""
    activity_threshold: float | None = Field(default=None, ge=0, le=1)
    """A calibration sample votes for a key/value head unit whose activity in it exceeds this share of attention.
    Null: the budget or `heads_kept` decides."""
    votes: float = Field(default=0.4, ge=0, lt=1)
    """A key/value head unit stays if more than this share of the samples votes for it. It has no effect without
    `activity_threshold`."""
    ffn_kept: float | None = Field(default=None, ge=0, le=1)
    """Share of each layer's FFN neurons that keep serving visual tokens. Null: the budget decides."""
    whole_layers: int = Field(default=2, ge=0)
    """Number of first layers that keep all heads, as far as the budget allows."""
    radius: int | None = Field(default=2, ge=0)
    """Chebyshev distance in the picture's grid, in tokens, within which a visual token sees other visual tokens.
    Null: no limit."""
    bidirectional: bool = True
    """Whether a visual token also sees later visual tokens within the radius. It must be false where radius is null."""

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
        """Returns the plan of a model whose layers are all equally active. Returns None for a budget of latency.

        Calibration decides which heads and neurons stay. The cost depends only on how many stay.

        Raises:
            UserError: `activity_threshold` is given, because only calibration tells how many heads pass it.
        """
        if self.activity_threshold is not None:
            raise UserError(
                "plan.activity_threshold: only calibration can tell how many heads pass it; "
                "give heads_kept for a dry run"
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
        return self._plan_for(config, flat, self.budget and PlanPrice(config, self.budget.measure))

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan for the given shares or threshold, or the largest plan that meets the budget.

        Raises:
            UserError: `withdraw_from` lies beyond the model's layers, or text alone exceeds the budget.
        """
        return self._plan_for(search.config, search.calibration, self.budget and search.price_within(self.budget))

    def _plan_for(self, config: PreTrainedConfig, calibration: Calibration, price: PlanPrice | None) -> VisualPlan:
        """Returns the plan for a model with these statistics. `price` is None where there is no budget."""
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
        """Returns the plan with the latest withdrawal, and then the most heads and neurons, that fit the budget."""

        def plan_of(share: float, whole_layers: int, withdraw_from: int) -> VisualPlan:
            kept = _most_active(calibration.activity, share, whole_layers, withdraw_from)
            return _plan(calibration, self, kept, share, whole_layers, withdraw_from)

        def fits(*arguments) -> bool:
            return price(plan_of(*arguments)) <= self.budget.share

        depths = range(config.text_config.num_hidden_layers, 0, -1)
        # If the budget does not allow even one layer with all heads, the first layers lose heads as well.
        whole_layers, withdraw_from = next(
            ((self.whole_layers, depth) for depth in depths if fits(RELEASED_SHARE, self.whole_layers, depth)), (0, 1)
        )
        shares = (step / SHARE_STEPS for step in range(SHARE_STEPS, -1, -1))
        share = next(share for share in shares if fits(share, whole_layers, withdraw_from))
        return plan_of(share, whole_layers, withdraw_from)


def _most_active(activity: Tensor, share: float, whole_layers: int, withdraw_from: int) -> Tensor:
    """Returns the most active units of layers between the whole ones and the withdrawal: [N, L, U] -> [L, U] bool."""
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
    """Returns the plan whose layers after the whole ones keep the units `kept` [L, U] bool."""
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
                heads=None if index < whole_layers else served_value(units, total=kept.shape[1]),
                ffn=served_value(order[: round(ffn_kept * num_neurons)].tolist(), total=num_neurons),
                radius=settings.radius,
                bidirectional=settings.bidirectional,
            )
        )
    return VisualPlan(layers=tuple(layers))
