"""G-Search (arXiv 2412.00556): layer by layer, as few visual tokens are carried as the answers allow.

The first layers carry all visual tokens. Then the layers are decided one by one. For each, the search finds the
smallest share of tokens that this layer and all later layers could carry while the answers stay within the tolerance
of the dense model's answers. That share is fixed for this layer. The next layer may carry the same share or less.
Survivors are the tokens that received most attention in the layer before, as in P-Sigmoid.

The paper does not state the weights of its objective, its data, or how it rounds shares. Here the objective of a share
within the tolerance is the share itself. A share outside the tolerance has an objective above 1, which grows with the
distance from the dense model's answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from optuna.distributions import FloatDistribution
from pydantic import Field

from data.sources.settings import Seed
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.planners.planner import Planner
from training.planners.tools.token_schedule import RANK_BY_INSTRUCTION, token_schedule
from training.planners.tools.trials import TRIALS, Trials
from training.progress import Progress

if TYPE_CHECKING:
    from training.planners.tools.search import Search


class GSearchPlanner(Planner):
    """G-Search (arXiv 2412.00556): the fewest visual tokens per layer with which the answers stay within a tolerance.

    The tolerance decides what the plan costs. There is no budget.
    """

    plot = "shares"
    planner: Literal["g_search"]
    measure: Literal["kl", "accuracy"] = "kl"
    """What the tolerance bounds. kl: the mean KL(dense || plan) over answer tokens. accuracy: the share of
    calibration answers in which every token is right."""
    tolerance: float = Field(ge=0)
    """Largest change of the answers that is allowed. With measure kl it is in nats. With measure accuracy it is the
    largest loss of accuracy, and 0.01 is one point."""
    full_layers: int = Field(default=2, ge=1)
    """Number of first layers that carry all visual tokens."""
    trials: int = Field(default=12, ge=2)
    """Number of shares that are tried for each layer."""
    seed: Seed = 0
    """Seed of the search."""

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan with the shares that the search found.

        Raises:
            UserError: `full_layers` is not below the model's number of layers, or no calibration sample with an image
                has an answer.
        """
        num_layers, answer_kl = search.config.text_config.num_hidden_layers, search.answer_kl
        if self.full_layers >= num_layers:
            raise UserError(
                f"plan.full_layers: got {self.full_layers}, allowed: 1 to {num_layers - 1}, as the model has "
                f"{num_layers} layers"
            )
        trials = Trials(search.file(TRIALS))
        dense_accuracy = answer_kl.accuracy(VisualPlan.dense(num_layers))
        shares = [1.0] * self.full_layers

        def objective(share: float) -> float:
            plan = token_schedule([*shares, *[share] * (num_layers - len(shares))], RANK_BY_INSTRUCTION)
            change = answer_kl(plan) if self.measure == "kl" else dense_accuracy - answer_kl.accuracy(plan)
            return share if change <= self.tolerance else 1 + change

        for layer in range(self.full_layers, num_layers):
            before = shares[-1]
            if before > 0:
                # The share of the layer before is within the tolerance, so the search always has a valid result.
                shares.append(
                    trials.minimize(
                        f"share of layer {layer}",
                        FloatDistribution(0.0, before),
                        objective,
                        initial=(before, 0.0),
                        num_trials=self.trials,
                        seed=self.seed,
                    )
                )
            else:
                shares.append(0.0)
        listed = ", ".join(f"{share:.3g}" for share in shares)
        Progress.write(f"g_search plan: {listed} of the visual tokens, layer by layer")
        return token_schedule(shares, RANK_BY_INSTRUCTION)
