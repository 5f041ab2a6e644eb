"""G-Search (arXiv 2412.00556): from shallow to deep, each layer carries the least visual tokens with which answers stay.

The first layers carry all tokens. Then, layer by layer, the share is searched that this layer and all after it could carry
with the answers still within the tolerance of the dense model's; it is fixed for this layer, and the next may carry no more.
Survivors are those that received most attention in the layer before, as for P-Sigmoid.

The paper names neither its objective's weights nor its data nor the rounding of shares: here a share within the tolerance is
worth itself, and one outside is worse than all within, the more so the farther it is outside.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from optuna.distributions import FloatDistribution
from pydantic import Field
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.measure.answer_kl import AnswerKL
from training.planners.tools.token_schedule import RECEIVED, token_schedule
from training.planners.tools.trials import Trials
from training.schema import Strict


class GSearchSettings(Strict):
    """The least tokens that keep the answers, at whatever they cost."""

    planner: Literal["g_search"]
    measure: Literal["kl", "accuracy"] = "kl"
    """kl: mean KL(dense || plan) at every token that predicts an answer's; accuracy: the share of calibration answers that
    are right in every token."""
    tolerance: float = Field(ge=0)
    """Largest KL, in nats; or the largest loss of accuracy, 0.01 being one point."""
    full_layers: int = Field(default=2, ge=1)
    """How many layers carry all visual tokens."""
    trials: int = Field(default=12, ge=2)
    """Shares tried per layer."""
    seed: int = Field(default=0, ge=0)


def plan_g_search(
    model: PreTrainedModel, batches: Sequence[dict], settings: GSearchSettings, journal: Path | None = None
) -> VisualPlan:
    """The plan of the shares found.

    Args:
        journal: where trials are kept; a search that was killed goes on from there.

    Raises:
        UserError: `full_layers` is not below the model's number of layers.
    """
    num_layers = model.config.text_config.num_hidden_layers
    if settings.full_layers >= num_layers:
        raise UserError(
            f"plan.full_layers: got {settings.full_layers}, allowed: 1 to {num_layers - 1}, as the model has {num_layers} layers"
        )
    trials, answers = Trials(journal), AnswerKL(model, batches)
    dense_accuracy = answers.accuracy(VisualPlan.dense(num_layers))
    shares = [1.0] * settings.full_layers

    def worth(share: float) -> float:
        plan = token_schedule([*shares, *[share] * (num_layers - len(shares))], RECEIVED)
        lost = answers(plan) if settings.measure == "kl" else dense_accuracy - answers.accuracy(plan)
        return share if lost <= settings.tolerance else 1 + lost

    for layer in range(settings.full_layers, num_layers):
        before = shares[-1]
        if before > 0:  # all of the layer before are within the tolerance, so there is always an answer
            allowed = FloatDistribution(0.0, before)
            name = f"share of layer {layer}"
            shares.append(
                trials.least(name, allowed, worth, first=(before, 0.0), count=settings.trials, seed=settings.seed)
            )
        else:
            shares.append(0.0)
    tqdm.write(f"g_search plan: {', '.join(f'{share:.3g}' for share in shares)} of the visual tokens, layer by layer")
    return token_schedule(shares, RECEIVED)
