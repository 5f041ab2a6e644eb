"""Token schedules: plans that carry fewer visual tokens the deeper the layer, and do all work for those they carry."""

from collections.abc import Sequence
from itertools import pairwise

from modeling.layer_plan import LayerPlan, Rank
from modeling.visual_plan import VisualPlan

RECEIVED = Rank(by="text_attention", rows="instruction")
"""By the attention received in the layer before, from the prompt after the image: the ranking of G-Search and P-Sigmoid."""
SHARE_STEPS = 1024
TOKEN_SHARES = tuple(step / SHARE_STEPS for step in range(SHARE_STEPS + 1))
"""The shares of visual tokens that budgets are solved for, from none to all."""
DIGITS = 6
"""Decimals of a share: one that is not 0 still keeps a token of every image, as `num_kept` counts."""


def token_schedule(shares: Sequence[float], rank: Rank) -> VisualPlan:
    """The plan that carries these shares of each image's tokens, one per layer, never growing.

    Args:
        rank: how survivors are chosen wherever the share falls.
    """
    rounded = [round(share, DIGITS) for share in shares]
    layers = (
        LayerPlan(tokens=share, rank=rank) if 0 < share < before else LayerPlan(tokens=share)
        for before, share in pairwise([1.0, *rounded])
    )
    return VisualPlan(layers=tuple(layers))
