"""Pre-pruning: visual tokens are chosen before the first layer, and every layer carries the same share of them.

Ranked by the vision tower's class token, this is FasterVLM (arXiv 2412.01818). Ranked by it over several layers of the
tower, it is VTC-CLS (arXiv 2412.05819). The rankings `uniform` and `random` are baselines that a ranking must beat. The
text does not influence the choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from data.sources.settings import Seed
from modeling.layer_plan import Rank
from modeling.visual_plan import VisualPlan
from training.planners.planner import SolvingPlanner
from training.planners.tools.token_schedule import TOKEN_SHARES, token_schedule

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from training.measure.latency import LatencyTable


class PrePruningPlanner(SolvingPlanner):
    """Drops visual tokens before the first layer, as FasterVLM (arXiv 2412.01818) and VTC-CLS (arXiv 2412.05819) do.

    Takes either `budget` or `keep`.
    """

    solves = "keep"
    planner: Literal["pre_pruning"]
    by: Literal["cls_attention", "uniform", "random"] = "cls_attention"
    """How tokens are chosen. cls_attention: those that the vision tower's class token attends to most. uniform: evenly
    spaced ones. random: a random choice that the seed decides."""
    keep: float | None = Field(default=None, ge=0, le=1)
    """Share of each picture's visual tokens that all layers carry. Null: the budget decides."""
    tower_layers: int = Field(default=1, ge=1)
    """Number of vision tower layers over which the class token's attention is summed. Only with by cls_attention."""
    seed: Seed = 0
    """Seed of the random choice. It has no effect unless by is random."""

    @model_validator(mode="after")
    def _layers_of_the_tower(self) -> PrePruningPlanner:
        if self.by != "cls_attention" and self.tower_layers != 1:
            raise ValueError(
                f"tower_layers: got {self.tower_layers} with by {self.by!r}, allowed: only with 'cls_attention'"
            )
        return self

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan | None:
        """Returns the plan with the given share of tokens, or with the largest share that fits the budget.

        Returns None for a budget of latency without timings.

        Raises:
            UserError: text alone exceeds the budget.
        """
        num_layers, seed = config.text_config.num_hidden_layers, self.seed if self.by == "random" else 0
        rank = Rank(by=self.by, tower_layers=self.tower_layers, seed=seed)

        def plan_of(share: float) -> VisualPlan:
            return token_schedule([share] * num_layers, rank)

        if self.budget is None:
            return plan_of(self.keep)
        return self.largest_within_budget(config, latency, TOKEN_SHARES, plan_of, "no visual tokens")
