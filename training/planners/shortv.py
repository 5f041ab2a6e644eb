"""ShortV's rule (arXiv 2504.00502): layers are frozen for visual tokens in the order of what freezing each alone
costs, the KL of the answers from the dense model's; frozen layers are still read."""

from collections.abc import Sequence
from typing import Literal

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.measure.answer_kl import AnswerKL
from training.planners.tools.budget import Budget, PlanPrice
from training.planners.tools.moves import FREEZE
from training.schema import Strict


class ShortvSettings(Strict):
    """Whole layers frozen until the budget is met."""

    planner: Literal["shortv"]
    budget: Budget


def plan_shortv(model: PreTrainedModel, batches: Sequence[dict], settings: ShortvSettings) -> VisualPlan:
    """The plan with the fewest layers frozen that meets the budget.

    Raises:
        UserError: the budget is below what reading costs with every layer frozen.
    """
    num_layers = model.config.text_config.num_hidden_layers
    plan, price, answer_kl = VisualPlan.dense(num_layers), PlanPrice(model.config), AnswerKL(model, batches)
    order = sorted(
        tqdm(range(num_layers), desc="shortv plan", unit="layer"),
        key=lambda layer: answer_kl(plan.replace(layer, **FREEZE)),
    )
    for layer in order:
        if price(plan) <= settings.budget.visual_flops:
            return plan
        plan = plan.replace(layer, **FREEZE)
    if price(plan) > settings.budget.visual_flops:
        raise UserError(
            f"plan.budget.visual_flops: got {settings.budget.visual_flops}, frozen layers that are read cost {price(plan):.4f}"
        )
    return plan
