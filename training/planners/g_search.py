"""G-Search (arXiv 2412.00556): from shallow to deep, each layer carries the least visual tokens with which answers stay.

The first layers carry all tokens. Then, layer by layer, the share is searched that this layer and all after it could carry
with the answers still within the tolerance of the dense model's; it is fixed for this layer, and the next may carry no more.
Survivors are those that received most attention in the layer before, as for P-Sigmoid.

The paper names neither its objective's weights nor its data nor the rounding of shares: here a share within the tolerance is
worth itself, and one outside is worse than all within, the more so the farther it is outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from optuna.distributions import FloatDistribution
from pydantic import Field
from tqdm.auto import tqdm

from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.planners.planner import Planner
from training.planners.tools.token_schedule import RECEIVED, token_schedule
from training.planners.tools.trials import TRIALS, Trials

if TYPE_CHECKING:
    from training.planners.tools.search import Search


class GSearchPlanner(Planner):
    """The least tokens that keep the answers, at whatever they cost."""

    plot = "shares"
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

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan of the shares that were found.

        Raises:
            UserError: `full_layers` is not below the model's number of layers.
        """
        num_layers, answers = search.config.text_config.num_hidden_layers, search.answer_kl
        if self.full_layers >= num_layers:
            raise UserError(
                f"plan.full_layers: got {self.full_layers}, allowed: 1 to {num_layers - 1}, as the model has "
                f"{num_layers} layers"
            )
        trials = Trials(search.file(TRIALS))
        dense_accuracy = answers.accuracy(VisualPlan.dense(num_layers))
        shares = [1.0] * self.full_layers

        def worth(share: float) -> float:
            plan = token_schedule([*shares, *[share] * (num_layers - len(shares))], RECEIVED)
            lost = answers(plan) if self.measure == "kl" else dense_accuracy - answers.accuracy(plan)
            return share if lost <= self.tolerance else 1 + lost

        for layer in range(self.full_layers, num_layers):
            before = shares[-1]
            if before > 0:  # all of the layer before are within the tolerance, so there is always an answer
                allowed = FloatDistribution(0.0, before)
                name = f"share of layer {layer}"
                shares.append(
                    trials.least(name, allowed, worth, first=(before, 0.0), count=self.trials, seed=self.seed)
                )
            else:
                shares.append(0.0)
        found = ", ".join(f"{share:.3g}" for share in shares)
        tqdm.write(f"g_search plan: {found} of the visual tokens, layer by layer")
        return token_schedule(shares, RECEIVED)
