"""The Lagrangian that holds the expected cost of gates to a target, and the target, which falls to the budget."""

import torch
from torch import nn


class Lagrangian(nn.Module):
    """Holds a cost to a target, with multipliers that are trained upwards.

    It is linear * x + quadratic * x^2 with x = cost / target - 1. This is the augmented Lagrangian of arXiv 1910.04732,
    but there x is the absolute difference. A relative difference holds a target of 2 % as closely as one of 25 %.

    While the target falls, the cost is above it. If the linear multiplier learned from this, it would push the cost far
    below the budget afterwards. So it is used only when the target is final.

    Args:
        quadratic: first value of the quadratic multiplier. That of the linear one is 0.
    """

    def __init__(self, quadratic: float):
        super().__init__()
        self.linear = nn.Parameter(torch.zeros(()))
        self.quadratic = nn.Parameter(torch.tensor(quadratic))

    def forward(self, cost: torch.Tensor, target: float, target_is_final: bool) -> torch.Tensor:
        """Returns the penalty, a differentiable scalar.

        Args:
            cost: scalar, as a share of the dense model's cost.
            target: what the cost is held to, in the same unit.
            target_is_final: whether the target will not fall any more.
        """
        excess = cost / target - 1
        return target_is_final * self.linear * excess + self.quadratic * excess**2


def falling_target(start: float, target: float, progress: float) -> float:
    """Returns the target at `progress`: geometric from `start` to `target` between 0 and 1, and constant after 1."""
    return start * (target / start) ** min(progress, 1.0) if start > target else target
