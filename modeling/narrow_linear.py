"""A linear map of which a part may be used.

A plan leaves outputs and inputs of a projection out. Those are absent from the matrix product, not masked in it.
"""

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from .host_memory import to_device

Selection: TypeAlias = int | slice | torch.Tensor | None
"""Chosen outputs or inputs of a projection: the first n, a slice, or a long tensor of indices. None means all."""


class NarrowLinear(nn.Linear):
    """A linear map that can give a part of its outputs, or take a part of its inputs."""

    def forward(self, x: torch.Tensor, rows: Selection = None, columns: Selection = None) -> torch.Tensor:
        """Returns the projection [..., out] of x [..., in].

        Args:
            rows: which outputs are computed. `out` is then their number.
            columns: which inputs x holds. `in` is then their number.
        """
        weight: torch.Tensor = self.weight
        bias: torch.Tensor | None = self.bias
        if rows is not None:
            rows = _as_index(rows, weight.device)
            weight = weight[rows]
            bias = None if bias is None else bias[rows]
        if columns is not None:
            weight = weight[:, _as_index(columns, weight.device)]
        return F.linear(x, weight, bias)


def _as_index(chosen: int | slice | torch.Tensor, device: torch.device) -> slice | torch.Tensor:
    if isinstance(chosen, torch.Tensor):
        return to_device(chosen, device)
    return slice(chosen) if isinstance(chosen, int) else chosen
