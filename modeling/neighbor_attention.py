"""Attention of visual tokens to their neighbours in the picture, at a cost linear in their number.

Each image grid is cut into square tiles. The queries of a tile share one window of candidate keys, the
tile grown by the radius on every side, so that attention is a batch of small dense products: gathered,
masked, one softmax over the text before the image and the neighbours together. The idea of attending
within a radius is YOPO's (arXiv 2410.06169, section 3.1), which masks a dense product instead.

Legend: B batch, V visual tokens, P text tokens before them, Hq query heads, Hkv key/value heads,
        hd head_dim, r radius, b side of a tile, M tiles, Q = b^2 queries and K = (b + 2r)^2 keys of a tile.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class NeighborTiles:
    """Which queries meet which keys, tile by tile. Slots that hold no token carry index 0 and are masked.

    Attributes:
        sample: [M] long, the sample each tile belongs to.
        query_index: [M, Q] long, into V.
        query_valid: [M, Q] bool, the slot holds a token.
        key_index: [M, K] long, into V.
        allowed: [M, Q, K] bool, the query sees the key.
        slot: [B, V] long, where each token stands among the M * Q query slots; -1 for padding.
    """

    sample: torch.Tensor
    query_index: torch.Tensor
    query_valid: torch.Tensor
    key_index: torch.Tensor
    allowed: torch.Tensor
    slot: torch.Tensor


def tile_side(radius: int) -> int:
    """Side b of a tile: twice the radius balances idle pairs against gathered keys, but many tiny tiles are slow."""
    return max(6, 2 * radius)


def tile_slots(grids: Sequence[tuple[int, int]], radius: int) -> tuple[int, int]:
    """What tiled attention executes on grids of these (rows, columns), empty slots included.

    Returns (query slots, query-key pair slots), summed over the grids. With tokens withdrawn this is an
    upper bound: tiles left without a token are not executed.
    """
    side = tile_side(radius)
    query_slots = sum(-(-rows // side) * -(-columns // side) * side**2 for rows, columns in grids)
    return query_slots, query_slots * (side + 2 * radius) ** 2


def tiles_pay(num_tokens: int, pair_slots: int) -> bool:
    """Whether tiles of `pair_slots` pairs are faster than one masked product over all `num_tokens` tokens.

    The one rule that the decoder and the FLOPs counter both follow; per sample. Gathering makes a pair of a tile
    cost about four times a pair of the dense product (measured on a CPU, forward and backward alike).
    """
    return 4 * pair_slots <= num_tokens**2


def neighbor_mask(
    grid: torch.Tensor, row: torch.Tensor, column: torch.Tensor, radius: int, bidirectional: bool
) -> torch.Tensor:
    """Mask of neighbour attention over all pairs, for grids too small for tiles to pay.

    Args:
        grid, row, column: [B, V] long, the grid of each token (-1: padding) and its place there.
        radius: greatest Chebyshev distance seen. bidirectional: later tokens too.

    Returns:
        [B, V, V] bool (query, key); rows and columns of padding are False.
    """
    same = (grid[:, :, None] == grid[:, None, :]) & (grid >= 0)[:, :, None]
    near_rows = (row[:, :, None] - row[:, None, :]).abs() <= radius
    near_columns = (column[:, :, None] - column[:, None, :]).abs() <= radius
    allowed = same & near_rows & near_columns
    return allowed if bidirectional else allowed.tril()


def neighbor_tiles(
    grid: torch.Tensor, row: torch.Tensor, column: torch.Tensor, radius: int, bidirectional: bool
) -> NeighborTiles:
    """Cut the grids of a batch into tiles.

    Args:
        grid: [B, V] long, number of the token's grid, unique within its sample; -1 for padding.
        row, column: [B, V] long, the token's place in it; ignored where padding. Grids may have
            holes and any size; tokens stand in sequence order.
        radius: greatest Chebyshev distance seen, 0 or more. bidirectional: later tokens too.
    """
    assert radius >= 0 and grid.shape == row.shape == column.shape
    side = tile_side(radius)
    window = side + 2 * radius
    valid = grid >= 0

    # Every grid as a table of token indices, -1 where there is none, with a margin of r for the windows.
    count, rows, columns = (int(place[valid].max()) + 1 if valid.any() else 1 for place in (grid, row, column))
    height, width = -(-rows // side) * side, -(-columns // side) * side
    token_sample, token = valid.nonzero(as_tuple=True)
    grids, number = torch.unique(token_sample * count + grid[valid], return_inverse=True)
    table = grid.new_full((len(grids), height + 2 * radius, width + 2 * radius), -1)
    table[number, row[valid] + radius, column[valid] + radius] = token

    inner = table[:, radius : radius + height, radius : radius + width]
    queries = _tiles(inner, side, side)  # [grids, tiles down, tiles across, Q]
    occupied = (queries >= 0).any(-1)
    query_index = queries[occupied]  # [M, Q]
    key_index = _tiles(table, window, side)[occupied]  # [M, K]
    sample = grids[occupied.nonzero()[:, 0]] // count  # [M]

    allowed = _within(radius, grid.device) & (query_index >= 0)[:, :, None] & (key_index >= 0)[:, None, :]
    if not bidirectional:
        allowed &= key_index[:, None, :] <= query_index[:, :, None]

    query_valid = query_index >= 0
    slot = torch.full_like(grid, -1)
    tile, place = query_valid.nonzero(as_tuple=True)
    slot[sample[tile], query_index[tile, place]] = tile * side**2 + place
    return NeighborTiles(sample, query_index.clamp(min=0), query_valid, key_index.clamp(min=0), allowed, slot)


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
        query: [B, Hq, V, hd]. key, value: [B, Hkv, V, hd]. Hq is a multiple of Hkv.
        text_key, text_value: [B, Hkv, P, hd]; P may be 0.
        text_mask: [B, V, P] bool, True where the visual query sees the text key.
        tiles: of the same V tokens. scaling: of the logits.

    Returns:
        [B, Hq, V, hd], zero where a token is padding.
    """
    batch, num_heads, num_tokens, head_dim = query.shape
    num_kv_heads, num_text = text_key.shape[1:3]
    sample = tiles.sample[:, None]
    query_row = sample * num_tokens + tiles.query_index  # [M, Q], into B * V
    key_row = sample * num_tokens + tiles.key_index  # [M, K], into B * V
    text_row = sample * num_text + torch.arange(num_text, device=query.device)  # [M, P], into B * P

    queries = _by_token(query)  # [B * V, Hq, hd]
    keys, values = (tuple(map(_by_token, pair)) for pair in ((text_key, key), (text_value, value)))
    text_seen = text_mask.flatten(0, 1)  # [B * V, P]
    few = max(1, _gathered_values(query.device) // ((num_text + key_row.shape[1]) * num_kv_heads * head_dim))
    slots = (query_row, tiles.query_valid, text_row, key_row, tiles.allowed)
    few_tiles = list(zip(*(part.split(few) for part in slots), strict=True))
    if torch.is_grad_enabled():
        output = torch.cat([_attend(queries, keys, values, text_seen, *some, scaling) for some in few_tiles])
        output = output.flatten(0, 1).index_select(0, tiles.slot.clamp(min=0).flatten())
        output = output.masked_fill_((tiles.slot < 0).view(-1, 1, 1), 0)
    else:  # Straight to its place: a further copy of a large picture is fresh memory, and slow.
        output = queries.new_zeros(batch * num_tokens + 1, num_heads, head_dim)  # the last row takes empty slots
        for some in few_tiles:
            row = some[0].masked_fill(~some[1], batch * num_tokens).flatten()
            output.index_copy_(0, row, _attend(queries, keys, values, text_seen, *some, scaling).flatten(0, 1))
        output = output[:-1]
    return output.view(batch, num_tokens, num_heads, head_dim).transpose(1, 2)


def _gathered_values(device: torch.device) -> int:
    """Keys (as many values) that are gathered at a time: what a CPU's cache holds, elsewhere a share of the memory."""
    return 2**21 if device.type == "cpu" else 2**27


def _attend(
    queries: torch.Tensor,
    keys: tuple[torch.Tensor, torch.Tensor],
    values: tuple[torch.Tensor, torch.Tensor],
    text_seen: torch.Tensor,
    query_row: torch.Tensor,
    query_valid: torch.Tensor,
    text_row: torch.Tensor,
    key_row: torch.Tensor,
    allowed: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Attention of some tiles -> [M, Q, Hq, hd]; keys and values are pairs, of the text and of the picture."""
    num_kv_heads = keys[0].shape[1]
    group = queries.shape[1] // num_kv_heads
    # Heads that share a key stand side by side as queries, so that keys are never repeated.
    tile_queries = _gather(queries, query_row).unflatten(2, (num_kv_heads, group))
    tile_queries = tile_queries.permute(0, 2, 3, 1, 4).flatten(2, 3)  # [M, Hkv, group * Q, hd]
    tile_keys, tile_values = (
        torch.cat([_gather(text, text_row), _gather(visual, key_row)], dim=1).transpose(1, 2)  # [M, Hkv, P + K, hd]
        for text, visual in (keys, values)
    )
    visible = torch.cat([text_seen[query_row], allowed], dim=-1)  # [M, Q, P + K]
    visible = visible | ~query_valid[:, :, None]  # empty slots see anything rather than nothing (NaN)
    visible = visible.repeat(1, group, 1)[:, None]  # [M, 1, group * Q, P + K]
    output = F.scaled_dot_product_attention(tile_queries, tile_keys, tile_values, attn_mask=visible, scale=scaling)
    return output.unflatten(2, (group, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def _tiles(table: torch.Tensor, window: int, step: int) -> torch.Tensor:
    """Square windows of every image: [images, R, C] -> [images, windows down, windows across, window^2]."""
    return table.unfold(1, window, step).unfold(2, window, step).flatten(-2)


def _within(radius: int, device: torch.device) -> torch.Tensor:
    """[Q, K] bool: which places of the window lie within the radius of which places of the tile."""
    side = tile_side(radius)
    in_tile = torch.arange(side, device=device) + radius
    in_window = torch.arange(side + 2 * radius, device=device)
    near = (in_tile[:, None] - in_window[None, :]).abs() <= radius  # [b, b + 2r]
    return (near[:, None, :, None] & near[None, :, None, :]).reshape(side**2, -1)


def _by_token(states: torch.Tensor) -> torch.Tensor:
    """[B, H, N, hd] -> [B * N, H, hd]"""
    return states.transpose(1, 2).flatten(0, 1)


def _gather(tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Tokens [B * N, H, hd] at rows [M, K] -> [M, K, H, hd]"""
    return tokens.index_select(0, rows.flatten()).unflatten(0, rows.shape)
