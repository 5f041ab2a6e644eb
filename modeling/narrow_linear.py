"""A linear map of which a part may be used: what a plan leaves out of a projection is absent, not masked."""

import torch
import torch.nn.functional as F
from torch import nn

Rows = int | slice | torch.Tensor | None
"""Of a projection's outputs or inputs: the first n, a slice, or their indices; None: all."""


class NarrowLinear(nn.Linear):
    """A linear map that gives some of its outputs, or takes some of its inputs."""

    def forward(self, x: torch.Tensor, rows: Rows = None, columns: Rows = None) -> torch.Tensor:
        """x [..., in] -> [..., out].

        Args:
            rows: the first n outputs, or their indices; None: all.
            columns: x holds only the first n inputs, or those of these indices; None: all.
        """
        weight, bias = self.weight, self.bias
        if rows is not None:
            rows = _selection(rows, weight.device)
            weight = weight[rows]
            bias = None if bias is None else bias[rows]
        if columns is not None:
            weight = weight[:, _selection(columns, weight.device)]
        return F.linear(x, weight, bias)


def _selection(chosen: int | slice | torch.Tensor, device: torch.device) -> slice | torch.Tensor:
    if isinstance(chosen, torch.Tensor):
        return chosen.to(device)
    return slice(chosen) if isinstance(chosen, int) else chosen
