"""Token schedules are plans that carry fewer visual tokens in deeper layers, and do all work for those they carry."""

from collections.abc import Sequence
from itertools import pairwise

from modeling.layer_plan import LayerPlan, Rank
from modeling.visual_plan import VisualPlan

RANK_BY_INSTRUCTION = Rank(by="text_attention", rows="instruction")
"""Ranks tokens by the attention that they receive, in the layer before, from the prompt after the picture.

G-Search and P-Sigmoid use it.
"""
SHARE_STEPS = 1024
TOKEN_SHARES = tuple(step / SHARE_STEPS for step in range(SHARE_STEPS + 1))
"""The shares of visual tokens from which a budget chooses, from none to all."""
SHARE_DIGITS = 6
"""Decimals to which a share is rounded. `num_kept` in modeling/layer_plan.py rounds to the same decimals."""


def token_schedule(shares: Sequence[float], rank: Rank) -> VisualPlan:
    """Returns the plan whose layers carry these shares of each picture's visual tokens.

    Args:
        shares: one in [0, 1] for each layer, never larger than the one before.
        rank: how survivors are chosen wherever the share falls.
    """
    rounded = [round(share, SHARE_DIGITS) for share in shares]
    layers = (
        LayerPlan(tokens=share, rank=rank) if 0 < share < before else LayerPlan(tokens=share)
        for before, share in pairwise([1.0, *rounded])
    )
    return VisualPlan(layers=tuple(layers))
