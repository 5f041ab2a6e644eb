"""Which attention units serve visual tokens in a layer, and the slices of projections and heads that follow.

A unit is a key/value group: one key head, one value head and the query heads that share them. When the served units
are the first n, every split is a slice and no weight is copied; a list of units is indexed, for plans under search.
"""

import torch


class Units:
    """Splits heads into those that serve visual tokens and the rest.

    Args:
        served: the first n units, or their indices.
        num_units: key/value heads of the layer.
        group: query heads per unit.
        head_dim: values per head.
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
        """Keys or values [B, U, T, H] -> those of the served units, those of the rest."""
        if self._first is not None:
            first = self._first // self.group
            return keys[:, :first], keys[:, first:]
        served, rest = (heads[:: self.group] // self.group for heads in (self._served, self._rest))
        return keys[:, served.to(keys.device)], keys[:, rest.to(keys.device)]

    def split_heads(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries [B, heads, T, H] -> those of the served units, those of the rest."""
        if self._first is not None:
            return queries[:, : self._first], queries[:, self._first :]
        return queries[:, self._served.to(queries.device)], queries[:, self._rest.to(queries.device)]

    def merge_heads(self, served: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """The inverse of `split_heads`."""
        merged = torch.cat([served, rest], dim=1)
        return merged if self._first is not None else merged[:, self._order.to(merged.device)]
