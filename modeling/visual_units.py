"""The split of attention heads into those that serve visual tokens in a layer and the others.

A unit is one key/value group: one key/value head and the query heads that share it.
If the first n units serve visual tokens, every split is a slice, and no weight is copied.
If a list of units does, they are taken by index. Plans under search have such lists.
"""

import torch

from .host_memory import to_device


class UnitSplit:
    """Splits projections and heads of one layer by the units that serve visual tokens.

    Args:
        served: the number n of the first units that serve visual tokens, or the indices of those units.
        num_units: number of key/value heads of the layer.
        group: number of query heads per unit.
        head_dim: number of values per head.

    Attributes:
        all_served: whether every unit serves visual tokens.
        query_rows: outputs of the query projection that belong to the served units: the first n, or indices.
        key_rows: the same for the key projection, and for the value projection.
    """

    def __init__(self, served: int | tuple[int, ...], num_units: int, group: int, head_dim: int):
        if isinstance(served, tuple) and sorted(served) == list(range(num_units)):
            served = num_units
        self.group = group
        self.all_served = (served if isinstance(served, int) else len(served)) == num_units
        self._first = served * group if isinstance(served, int) else None
        if isinstance(served, int):
            self.query_rows: int | torch.Tensor = served * group * head_dim
            self.key_rows: int | torch.Tensor = served * head_dim
            return
        heads = torch.arange(num_units * group).view(num_units, group)
        rest = [unit for unit in range(num_units) if unit not in served]
        self._served = heads[list(served)].flatten()
        self._rest = heads[rest].flatten()
        self._order = torch.argsort(torch.cat([self._served, self._rest]))
        self.query_rows = (self._served[:, None] * head_dim + torch.arange(head_dim)).flatten()
        self.key_rows = (torch.tensor(served, dtype=torch.long)[:, None] * head_dim + torch.arange(head_dim)).flatten()

    def split(self, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the served units' part and the rest of keys or values [B, units, T, head_dim]."""
        if self._first is not None:
            first = self._first // self.group
            return keys[:, :first], keys[:, first:]
        served, rest = (heads[:: self.group] // self.group for heads in (self._served, self._rest))
        return keys[:, to_device(served, keys.device)], keys[:, to_device(rest, keys.device)]

    def split_heads(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the served units' part and the rest of queries [B, query heads, T, head_dim]."""
        if self._first is not None:
            return queries[:, : self._first], queries[:, self._first :]
        return queries[:, to_device(self._served, queries.device)], queries[:, to_device(self._rest, queries.device)]

    def merge_heads(self, served: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """Returns the heads in their own order. This is the inverse of `split_heads`."""
        merged = torch.cat([served, rest], dim=1)
        return merged if self._first is not None else merged[:, to_device(self._order, merged.device)]
