"""Times attention within a radius on ever larger pictures, without a model around it."""

from collections.abc import Sequence

import torch

from modeling.neighbor_attention import neighbor_attention, neighbor_tiles
from training.measure.clock.timing import interleaved_seconds, spread


def time_neighbor_attention(
    sides: Sequence[int],
    *,
    radius: int,
    num_heads: int,
    head_dim: int,
    text_tokens: int,
    dtype: torch.dtype,
    device: str,
    repeats: int,
) -> list[dict]:
    """Returns the seconds of attention within a radius, one dict for each square grid.

    A dict has the keys `tokens`, `radius`, `layer` and `tiling`. `layer` is the spread of the seconds of one layer's
    attention. `tiling` is that of the grid's division into tiles, which a forward pass does once.

    Args:
        sides: side lengths of the grids, in visual tokens.
        radius: Chebyshev distance within which a visual token sees visual tokens.
        text_tokens: text tokens before the picture, which all visual tokens see.
    """
    rows = []
    for side in sides:
        cell = torch.arange(side**2, device=device)[None]
        # The grids of the only sample, and each token's grid, row and column, [1, side^2].
        positions = ([[(side, side)]], torch.zeros_like(cell), cell // side, cell % side)
        query, key, value = (_random_heads(side**2, num_heads, head_dim, dtype, device) for _ in range(3))
        text_key, text_value = (_random_heads(text_tokens, num_heads, head_dim, dtype, device) for _ in range(2))
        text_mask = torch.ones(1, side**2, text_tokens, dtype=torch.bool, device=device)
        tiles = neighbor_tiles(*positions, radius, False)
        states = (query, key, value, text_key, text_value, text_mask)
        times = interleaved_seconds(
            {
                "layer": lambda states=states, tiles=tiles: neighbor_attention(*states, tiles, head_dim**-0.5),
                "tiling": lambda positions=positions: neighbor_tiles(*positions, radius, False),
            },
            repeats,
            torch.device(device),
        )
        rows.append({"tokens": side**2, "radius": radius, **{name: spread(values) for name, values in times.items()}})
    return rows


def _random_heads(length: int, num_heads: int, head_dim: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Returns [1, heads, length, head_dim], laid out in memory as a projection leaves it."""
    return torch.randn(1, length, num_heads, head_dim, dtype=dtype, device=device).transpose(1, 2)
