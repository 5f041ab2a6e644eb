"""Pre-pruning: every layer carries the same share of each image's visual tokens, chosen before the first.

By the vision tower's class token it is the rule of FasterVLM (arXiv 2412.01818) and, over several of its layers, VTC-CLS
(2412.05819), up to which layers; `uniform` and `random` are what a ranking must beat. Text has no say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from modeling.layer_plan import Rank
from modeling.visual_plan import VisualPlan
from training.planners.planner import SolvingPlanner
from training.planners.tools.token_schedule import TOKEN_SHARES, token_schedule

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from training.measure.latency import LatencyTable


class PrePruningPlanner(SolvingPlanner):
    """Either a budget or `keep`."""

    solves = "keep"
    planner: Literal["pre_pruning"]
    by: Literal["cls_attention", "uniform", "random"] = "cls_attention"
    keep: float | None = Field(default=None, ge=0, le=1)
    """Share of the tokens that stay."""
    tower_layers: int = Field(default=1, ge=1)
    """Of `cls_attention`: summed over so many of the tower's layers."""
    seed: int = Field(default=0, ge=0)
    """Of `random`."""

    @model_validator(mode="after")
    def _layers_of_the_tower(self) -> PrePruningPlanner:
        if self.by != "cls_attention" and self.tower_layers != 1:
            raise ValueError(
                f"tower_layers: got {self.tower_layers} with by {self.by!r}, allowed: only with 'cls_attention'"
            )
        return self

    def plan_of_config(self, config: PreTrainedConfig, latency: LatencyTable | None = None) -> VisualPlan | None:
        """Returns the plan of the given share, or of the largest that fits the budget."""
        num_layers, seed = config.text_config.num_hidden_layers, self.seed if self.by == "random" else 0
        rank = Rank(by=self.by, tower_layers=self.tower_layers, seed=seed)

        def plan(keep: float) -> VisualPlan:
            return token_schedule([keep] * num_layers, rank)

        if self.budget is None:
            return plan(self.keep)
        return self.largest_within_budget(config, latency, TOKEN_SHARES, plan, "no visual tokens")
