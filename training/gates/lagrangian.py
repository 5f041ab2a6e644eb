"""The Lagrangian that holds the expected price of gates to a budget, and the target that falls to the budget."""

import torch
from torch import nn


class Lagrangian(nn.Module):
    """Holds a cost to a target, with multipliers that are trained upwards.

    With x = cost / target - 1 it is linear * x + quadratic * x^2, the augmented Lagrangian of arXiv 1910.04732. There the
    distance is absolute. Here it is relative, so that a target of 2 % is held as closely as one of 25 %.

    While the target falls, the cost lags behind it. A linear multiplier that learned from that lag would push the cost
    far below the budget afterwards. So it takes part once the target rests.
    """

    def __init__(self, quadratic: float):
        super().__init__()
        self.linear = nn.Parameter(torch.zeros(()))
        self.quadratic = nn.Parameter(torch.tensor(quadratic))

    def forward(self, cost: torch.Tensor, target: float, rests: bool) -> torch.Tensor:
        excess = cost / target - 1
        return rests * self.linear * excess + self.quadratic * excess**2


def falling_target(start: float, target: float, progress: float) -> float:
    """Returns the target at `progress`: geometric from `start` to `target` between 0 and 1, and constant after 1."""
    return start * (target / start) ** min(progress, 1.0) if start > target else target
