"""The model card of a sparse checkpoint."""

from checkpoints.card.card import model_card
from checkpoints.card.metadata import Licence, base_license, stated_base_model
from checkpoints.card.tables import (
    CONVENTIONS,
    benchmark_rows,
    cost_table,
    mean_share,
    plan_table,
    speed_conditions,
    speed_rows,
)

__all__ = [
    "CONVENTIONS",
    "Licence",
    "base_license",
    "benchmark_rows",
    "cost_table",
    "mean_share",
    "model_card",
    "plan_table",
    "speed_conditions",
    "speed_rows",
    "stated_base_model",
]
