"""Attention of visual tokens to their neighbours in the picture, at a cost linear in the number of tokens.

Each image grid is cut into square tiles. The queries of a tile share one window of keys, which is the tile grown by the
radius on every side. Attention is then a batch of small dense products: keys are gathered and masked, and one softmax
runs over the text before the image and the neighbours together.
Attending within a radius is YOPO's idea (arXiv 2410.06169, section 3.1). YOPO masks a dense product instead.

Shapes: B batch, V visual tokens, P text tokens before them, Hq query heads, Hkv key/value heads, hd head_dim, r radius,
b side of a tile, M tiles, Q = b^2 queries and K = (b + 2r)^2 keys of a tile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .host_memory import to_device


@dataclass(frozen=True)
class NeighborTiles:
    """Which queries meet which keys, tile by tile. A slot without a token has index 0 and is masked.

    Attributes:
        sample: [M] long, the sample that each tile belongs to.
        query_index: [M, Q] long, into V.
        query_valid: [M, Q] bool, whether the slot holds a token.
        key_index: [M, K] long, into V.
        allowed: [M, Q, K] bool, whether the query sees the key.
        slot: [B, V] long, the number of each token's slot among the M * Q query slots; -1 at padding.
    """

    sample: torch.Tensor
    query_index: torch.Tensor
    query_valid: torch.Tensor
    key_index: torch.Tensor
    allowed: torch.Tensor
    slot: torch.Tensor


def tile_side(radius: int) -> int:
    """Returns the side b of a tile.

    Twice the radius balances idle pairs against gathered keys. Many tiny tiles are slow, so 6 is the least.
    """
    return max(6, 2 * radius)


def tile_slots(grids: Sequence[tuple[int, int]], radius: int) -> tuple[int, int]:
    """Returns the numbers of query slots and of query-key pair slots that tiled attention executes, summed over grids.

    Empty slots count too, and so do tiles whose tokens were all withdrawn.

    Args:
        grids: (rows, columns) of each.
    """
    side = tile_side(radius)
    query_slots = sum(-(-rows // side) * -(-columns // side) * side**2 for rows, columns in grids)
    return query_slots, query_slots * (side + 2 * radius) ** 2


def tiles_pay(num_tokens: int, pair_slots: int) -> bool:
    """Returns whether tiles of `pair_slots` pairs are faster than one masked product of `num_tokens` tokens.

    Both numbers are those of one sample. The decoder and the FLOPs counter both follow this rule. Keys of tiles are
    gathered, so a pair of a tile costs about four times a pair of the dense product (measured on a CPU, forward and
    backward alike).
    """
    return 4 * pair_slots <= num_tokens**2


def neighbor_mask(
    grid: torch.Tensor, row: torch.Tensor, column: torch.Tensor, radius: int, bidirectional: bool
) -> torch.Tensor:
    """Returns the mask [B, V, V], bool (query, key), of neighbour attention over all pairs.

    It serves grids that are too small for tiles to pay. Rows and columns of padding are False.

    Args:
        grid: [B, V] long, the number of the token's grid; -1 at padding.
        row, column: [B, V] long, the token's position in its grid.
        radius: greatest Chebyshev distance that is seen.
        bidirectional: whether later tokens are seen too.
    """
    same = (grid[:, :, None] == grid[:, None, :]) & (grid >= 0)[:, :, None]
    near_rows = (row[:, :, None] - row[:, None, :]).abs() <= radius
    near_columns = (column[:, :, None] - column[:, None, :]).abs() <= radius
    allowed = same & near_rows & near_columns
    return allowed if bidirectional else allowed.tril()


def neighbor_tiles(
    grids: Sequence[Sequence[tuple[int, int]]],
    grid: torch.Tensor,
    row: torch.Tensor,
    column: torch.Tensor,
    radius: int,
    bidirectional: bool,
) -> NeighborTiles:
    """Cuts the grids of a batch into tiles.

    Which tiles there are depends on the grids' sizes alone, so the host need not ask the device. A tile whose tokens
    were all withdrawn is therefore there too.

    Args:
        grids: (rows, columns) of each grid of each sample.
        grid: [B, V] long, the number of the token's grid, unique within its sample; -1 at padding.
        row, column: [B, V] long, the token's position in its grid; ignored at padding. Grids may have holes and any
            size. Tokens are in sequence order.
        radius: greatest Chebyshev distance that is seen, at least 0.
        bidirectional: whether later tokens are seen too.
    """
    assert radius >= 0 and grid.shape == row.shape == column.shape
    side, device = tile_side(radius), grid.device
    sizes = [size for of_sample in grids for size in of_sample]
    sample, *of_tile = to_device(_tile_places(grids, side), device)

    # Each grid becomes a table of token indices, -1 where there is none, with a margin of r for the windows.
    height, width = (max((-(-size[axis] // side) for size in sizes), default=1) * side for axis in (0, 1))
    table = grid.new_full((len(sizes), height + 2 * radius, width + 2 * radius), -1)
    first = torch.tensor(list(accumulate(map(len, grids), initial=0))[:-1])  # of each sample's grids
    of_batch = grid + to_device(first, device)[:, None]
    cell = (of_batch * table.shape[1] + row + radius) * table.shape[2] + column + radius
    table = _filled(table, cell, grid >= 0, torch.arange(grid.shape[1], device=device).expand_as(grid))

    query_index = _tiles(table[:, radius : radius + height, radius : radius + width], side, side)[tuple(of_tile)]
    key_index = _tiles(table, side + 2 * radius, side)[tuple(of_tile)]  # [M, K]
    query_valid = query_index >= 0  # [M, Q]

    allowed = _within(radius, device) & query_valid[:, :, None] & (key_index >= 0)[:, None, :]
    if not bidirectional:
        allowed &= key_index[:, None, :] <= query_index[:, :, None]

    places = torch.arange(query_index.numel(), device=device).view_as(query_index)
    token = sample[:, None] * grid.shape[1] + query_index
    slot = _filled(torch.full_like(grid, -1), token, query_valid, places)
    return NeighborTiles(sample, query_index.clamp(min=0), query_valid, key_index.clamp(min=0), allowed, slot)


def _tile_places(grids: Sequence[Sequence[tuple[int, int]]], side: int) -> torch.Tensor:
    """Returns [4, M] long, for each tile its sample, the number of its grid in the batch, and its row and column in it.

    It lies on the host.
    """
    number, places = 0, [torch.zeros(4, 0, dtype=torch.long)]
    for sample, of_sample in enumerate(grids):
        for rows, columns in of_sample:
            ranges = (torch.arange(-(-length // side)) for length in (rows, columns))
            in_grid = torch.cartesian_prod(*ranges).view(-1, 2).T
            places.append(torch.cat([torch.tensor([[sample], [number]]).expand(-1, in_grid.shape[1]), in_grid]))
            number += 1
    return torch.cat(places, dim=1)


def _filled(table: torch.Tensor, index: torch.Tensor, valid: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Returns `table` with the valid values at their indices into all of it."""
    room = torch.cat([table.flatten(), table.new_zeros(1)])  # the last place takes the invalid ones
    room.scatter_(0, torch.where(valid, index, len(room) - 1).flatten(), values.flatten())
    return room[:-1].view_as(table)


def neighbor_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    text_key: torch.Tensor,
    text_value: torch.Tensor,
    text_mask: torch.Tensor,
    tiles: NeighborTiles,
    scaling: float,
) -> torch.Tensor:
    """Visual queries attend to the text before them and to their neighbours, in one softmax.

    Args:
        query: [B, Hq, V, hd]. Hq is a multiple of Hkv.
        key, value: [B, Hkv, V, hd].
        text_key, text_value: [B, Hkv, P, hd]. P may be 0.
        text_mask: [B, V, P] bool, true where the visual query sees the text key.
        tiles: tiles of the same V tokens.
        scaling: factor of the logits.

    Returns:
        [B, Hq, V, hd], zero where a token is padding.
    """
    batch, num_heads, num_tokens, head_dim = query.shape
    num_kv_heads, num_text = text_key.shape[1:3]
    rows = _Rows(
        queries=_by_token(query),
        text_keys=_by_token(text_key),
        text_values=_by_token(text_value),
        keys=_by_token(key),
        values=_by_token(value),
        text_mask=text_mask.flatten(0, 1),
    )
    values_per_tile = (num_text + tiles.key_index.shape[1]) * num_kv_heads * head_dim
    chunks = _chunks(tiles, num_tokens, num_text, max(1, _gathered_values(query.device) // values_per_tile))
    if torch.is_grad_enabled():
        output = torch.cat([_attend(rows, chunk, scaling) for chunk in chunks])
        output = output.flatten(0, 1).index_select(0, tiles.slot.clamp(min=0).flatten())
        output = output.masked_fill_((tiles.slot < 0).view(-1, 1, 1), 0)
    else:  # Each chunk goes straight to its rows: one more copy of a large picture is fresh memory, and slow.
        output = rows.queries.new_zeros(batch * num_tokens + 1, num_heads, head_dim)  # the last row takes empty slots
        for chunk in chunks:
            target = chunk.query_row.masked_fill(~chunk.query_valid, batch * num_tokens).flatten()
            output.index_copy_(0, target, _attend(rows, chunk, scaling).flatten(0, 1))
        output = output[:-1]
    return output.view(batch, num_tokens, num_heads, head_dim).transpose(1, 2)


class _Rows(NamedTuple):
    """What tiles gather from, all samples one after another.

    Attributes:
        queries: [B * V, Hq, hd].
        text_keys, text_values: [B * P, Hkv, hd].
        keys, values: [B * V, Hkv, hd].
        text_mask: [B * V, P] bool, whether the query sees the text key.
    """

    queries: torch.Tensor
    text_keys: torch.Tensor
    text_values: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    text_mask: torch.Tensor


class _Chunk(NamedTuple):
    """Some tiles, with indices into `_Rows`.

    Attributes:
        query_row: [M, Q] long.
        query_valid: [M, Q] bool, whether the slot holds a token.
        text_row: [M, P] long.
        key_row: [M, K] long.
        allowed: [M, Q, K] bool, whether the query sees the visual key.
    """

    query_row: torch.Tensor
    query_valid: torch.Tensor
    text_row: torch.Tensor
    key_row: torch.Tensor
    allowed: torch.Tensor


def _chunks(tiles: NeighborTiles, num_tokens: int, num_text: int, tiles_at_once: int) -> list[_Chunk]:
    """Returns the tiles in chunks of `tiles_at_once`, their rows counted over the whole batch."""
    sample = tiles.sample[:, None]
    parts = (
        sample * num_tokens + tiles.query_index,
        tiles.query_valid,
        sample * num_text + torch.arange(num_text, device=sample.device),
        sample * num_tokens + tiles.key_index,
        tiles.allowed,
    )
    return [_Chunk(*split) for split in zip(*(part.split(tiles_at_once) for part in parts), strict=True)]


def _gathered_values(device: torch.device) -> int:
    """Returns how many values of keys are gathered at a time: what a CPU's cache holds, elsewhere a share of memory.

    As many values of values are gathered besides.
    """
    return 2**21 if device.type == "cpu" else 2**27


def _attend(rows: _Rows, chunk: _Chunk, scaling: float) -> torch.Tensor:
    """Returns the attention output [M, Q, Hq, hd] of some tiles."""
    num_kv_heads = rows.keys.shape[1]
    group = rows.queries.shape[1] // num_kv_heads
    # Heads that share a key stand side by side as queries, so that keys are never repeated.
    queries = _gather(rows.queries, chunk.query_row).unflatten(2, (num_kv_heads, group))
    queries = queries.permute(0, 2, 3, 1, 4).flatten(2, 3)  # [M, Hkv, group * Q, hd]
    keys, values = (
        torch.cat([_gather(text, chunk.text_row), _gather(visual, chunk.key_row)], dim=1).transpose(1, 2)
        for text, visual in ((rows.text_keys, rows.keys), (rows.text_values, rows.values))
    )  # [M, Hkv, P + K, hd]
    visible = torch.cat([rows.text_mask[chunk.query_row], chunk.allowed], dim=-1)  # [M, Q, P + K]
    visible = visible | ~chunk.query_valid[:, :, None]  # empty slots see anything rather than nothing (NaN)
    visible = visible.repeat(1, group, 1)[:, None]  # [M, 1, group * Q, P + K]
    output = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible, scale=scaling)
    return output.unflatten(2, (group, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def _tiles(table: torch.Tensor, window: int, step: int) -> torch.Tensor:
    """Returns the square windows [grids, windows down, windows across, window^2] of tables [grids, rows, columns]."""
    return table.unfold(1, window, step).unfold(2, window, step).flatten(-2)


def _within(radius: int, device: torch.device) -> torch.Tensor:
    """Returns which positions of the window lie within the radius of which positions of the tile, [Q, K] bool."""
    side = tile_side(radius)
    in_tile = torch.arange(side, device=device) + radius
    in_window = torch.arange(side + 2 * radius, device=device)
    near = (in_tile[:, None] - in_window[None, :]).abs() <= radius  # [b, b + 2r]
    return (near[:, None, :, None] & near[None, :, None, :]).reshape(side**2, -1)


def _by_token(states: torch.Tensor) -> torch.Tensor:
    """Returns [B * N, H, hd] from [B, H, N, hd]."""
    return states.transpose(1, 2).flatten(0, 1)


def _gather(tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Returns [M, K, H, hd], the tokens [B * N, H, hd] at rows [M, K]."""
    return tokens.index_select(0, rows.flatten()).unflatten(0, rows.shape)
