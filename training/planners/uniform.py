"""Uniform narrowing: every layer serves visual tokens with the same share of its heads and neurons. What a planner that knows
nothing of layers can do."""

from typing import Literal

from transformers import PreTrainedConfig

from modeling.layer_plan import LayerPlan
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.measure.calibration import Calibration
from training.planners.tools.budget import Budget, PlanPrice
from training.planners.tools.moves import Moves
from training.schema import Strict

SHARE_STEPS = 256


class UniformSettings(Strict):
    """The largest share of heads and FFN neurons, the same in all layers, that fits the budget."""

    planner: Literal["uniform"]
    budget: Budget


def plan_uniform(config: PreTrainedConfig, calibration: Calibration, settings: UniformSettings) -> VisualPlan:
    """The units of largest KL and the neurons of largest importance stay in each layer.

    Raises:
        UserError: not even one unit in every layer fits the budget.
    """
    text, moves, price = config.text_config, Moves(config, calibration), PlanPrice(config)
    for step in range(SHARE_STEPS, 0, -1):
        units = round(text.num_key_value_heads * step / SHARE_STEPS)
        if units == 0:
            break
        layer = LayerPlan(heads=units, ffn=round(text.intermediate_size * step / SHARE_STEPS))
        plan = moves.listed(VisualPlan(layers=(layer,) * text.num_hidden_layers))
        if price(plan) <= settings.budget.visual_flops:
            return plan
    raise UserError(
        f"plan.budget.visual_flops: got {settings.budget.visual_flops}, the narrowest uniform plan costs {price(plan):.4f}"
    )
