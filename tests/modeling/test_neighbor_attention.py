"""Tiled neighbour attention against a loop over tokens that is too slow to be wrong."""

import pytest
import torch
import torch.nn.functional as F

from modeling.neighbor_attention import (
    NeighborTiles,
    neighbor_attention,
    neighbor_mask,
    neighbor_tiles,
    tile_slots,
    tiles_pay,
)

NUM_KV_HEADS, HEAD_DIM = 2, 8


def places(samples, keep=1.0, seed=0):
    """image, row, column [B, V] of samples given as lists of (rows, columns); a share of tokens withdrawn."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for grids in samples:
        tokens = [(i, r, c) for i, (rows, columns) in enumerate(grids) for r in range(rows) for c in range(columns)]
        kept = [token for token in tokens if torch.rand((), generator=generator) < keep] or tokens[:1]
        found.append(torch.tensor(kept))
    longest = max(len(tokens) for tokens in found)
    padded = torch.stack([F.pad(tokens, (0, 0, 0, longest - len(tokens)), value=-1) for tokens in found])
    return padded.unbind(-1)


def states(batch, num_tokens, num_text, group=1, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(heads, length):
        values = torch.randn(batch, heads, length, HEAD_DIM, generator=generator, dtype=dtype)
        return values.requires_grad_()

    query = draw(NUM_KV_HEADS * group, num_tokens)
    visual = [draw(NUM_KV_HEADS, num_tokens) for _ in range(2)]
    text = [draw(NUM_KV_HEADS, num_text) for _ in range(2)]
    text_mask = torch.rand(batch, num_tokens, num_text, generator=generator) < 0.7
    return [query, *visual, *text], text_mask


def reference(query, key, value, text_key, text_value, text_mask, image, row, column, radius, bidirectional, scaling):
    """One softmax per token, over the keys picked by reading the definition aloud."""
    batch, num_heads, num_tokens, _ = query.shape
    group = num_heads // key.shape[1]
    output = torch.zeros_like(query)
    for b in range(batch):
        for i in range(num_tokens):
            if image[b, i] < 0:
                continue
            near = [
                j
                for j in range(num_tokens)
                if image[b, j] == image[b, i]
                and max(abs(row[b, j] - row[b, i]), abs(column[b, j] - column[b, i])) <= radius
                and (bidirectional or j <= i)
            ]
            for h in range(num_heads):
                keys = torch.cat([text_key[b, h // group][text_mask[b, i]], key[b, h // group, near]])
                values = torch.cat([text_value[b, h // group][text_mask[b, i]], value[b, h // group, near]])
                output[b, h, i] = (query[b, h, i] @ keys.T * scaling).softmax(-1) @ values
    return output


SAMPLES = {
    "one square image": [[(8, 8)]],
    "two images, ragged, sizes that no tile divides": [[(7, 9), (3, 2)], [(1, 9)]],
    "a sample much smaller than its batch mate": [[(2, 2)], [(13, 4)]],
}


@pytest.mark.parametrize("samples", SAMPLES.values(), ids=SAMPLES.keys())
@pytest.mark.parametrize("radius", [0, 1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("keep, group, num_text", [(1.0, 1, 3), (0.6, 2, 0)])
def test_tiles_equal_the_loop(samples, radius, bidirectional, keep, group, num_text):
    image, row, column = places(samples, keep)
    tensors, text_mask = states(*image.shape, num_text, group)
    tiles = neighbor_tiles(samples, image, row, column, radius, bidirectional)
    output = neighbor_attention(*tensors, text_mask, tiles, 0.3)
    expected = reference(*tensors, text_mask, image, row, column, radius, bidirectional, 0.3)
    torch.testing.assert_close(output, expected)
    with torch.no_grad():  # written elsewhere, the same numbers
        assert torch.equal(neighbor_attention(*tensors, text_mask, tiles, 0.3), output)

    weight = torch.randn_like(output)
    gradients = torch.autograd.grad((output * weight).sum(), tensors)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), tensors)
    torch.testing.assert_close(gradients, expected_gradients)


@pytest.mark.parametrize("change", ["radius", "bidirectional", "text", "image"])
def test_the_loop_notices_a_difference(change):
    """Each ingredient matters: with one of them wrong, tiles and loop differ."""
    grids = [[(5, 5), (4, 4)]]
    image, row, column = places(grids, keep=0.8)
    tensors, text_mask = states(*image.shape, 3)
    expected = reference(*tensors, text_mask, image, row, column, 1, False, 0.3)
    radius, bidirectional = (2 if change == "radius" else 1), change == "bidirectional"
    if change == "text":
        text_mask = ~text_mask
    if change == "image":
        image, row = torch.zeros_like(image), row + 5 * image  # the second image right below the first
        grids = [[(9, 5)]]
    tiles = neighbor_tiles(grids, image, row, column, radius, bidirectional)
    output = neighbor_attention(*tensors, text_mask, tiles, 0.3)
    assert (output - expected).abs().max() > 1e-2


@pytest.mark.parametrize("bidirectional", [False, True])
def test_mask_equals_tiles(bidirectional):
    """The path for small images, a masked dense product, means the same as tiles."""
    samples = [[(5, 7), (3, 2)], [(4, 4)]]
    image, row, column = places(samples, keep=0.7)
    tensors, text_mask = states(*image.shape, 3)
    query, key, value, text_key, text_value = tensors
    tiles = neighbor_tiles(samples, image, row, column, 1, bidirectional)
    output = neighbor_attention(*tensors, text_mask, tiles, 0.3)
    visible = torch.cat([text_mask, neighbor_mask(image, row, column, 1, bidirectional)], -1)
    keys, values = torch.cat([text_key, key], 2), torch.cat([text_value, value], 2)
    dense = F.scaled_dot_product_attention(query, keys, values, attn_mask=visible[:, None], scale=0.3)
    padding = (image < 0)[:, None, :, None]
    torch.testing.assert_close(output, dense.masked_fill(padding, 0))
    assert not visible[(image < 0)][:, text_mask.shape[-1] :].any()


def test_padding_rows_are_zero_and_finite():
    """Padded tokens, even as NaN-free garbage, neither give output nor reach their batch mates."""
    samples = [[(4, 6)], [(2, 3)]]
    image, row, column = places(samples)
    tensors, text_mask = states(*image.shape, 0)
    tiles = neighbor_tiles(samples, image, row, column, 2, True)
    output = neighbor_attention(*tensors, text_mask, tiles, 0.3)
    padding = image < 0
    assert padding.any() and output.transpose(1, 2)[padding].abs().sum() == 0
    garbage = [tensor.detach().clone() for tensor in tensors]
    for tensor in garbage[:3]:
        tensor.transpose(1, 2)[padding] = 1e6
    torch.testing.assert_close(neighbor_attention(*garbage, text_mask, tiles, 0.3), output.detach())


def test_no_visual_token_at_all():
    tensors, text_mask = states(2, 0, 3)
    nothing = torch.zeros(2, 0, dtype=torch.long)
    tiles = neighbor_tiles([[], []], nothing, nothing, nothing, 2, False)
    assert neighbor_attention(*tensors, text_mask, tiles, 0.3).shape == (2, NUM_KV_HEADS, 0, HEAD_DIM)


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_claimed_slots_are_the_tiles(radius):
    grids = [(5, 7), (16, 12), (1, 1)]
    image, row, column = places([grids])
    tiles = neighbor_tiles([grids], image, row, column, radius, False)
    assert tile_slots(grids, radius) == (tiles.query_index.numel(), tiles.allowed.numel())
    assert isinstance(tiles, NeighborTiles)
    # With holes too: which tiles there are does not depend on values, for which the host would have to wait.
    holes = neighbor_tiles([grids], *places([grids], keep=0.1), radius, False)
    assert holes.query_index.numel() == tile_slots(grids, radius)[0]


def test_cost_grows_with_tokens_not_with_their_square():
    slots = {side: tile_slots([(side, side)], 2)[1] for side in (30, 60, 120)}
    assert slots[60] == 4 * slots[30] and slots[120] == 4 * slots[60]
    assert tiles_pay(24 * 24, tile_slots([(24, 24)], 2)[1])
    assert not tiles_pay(12 * 12, tile_slots([(12, 12)], 2)[1])


def test_never_a_square_of_all_tokens():
    """No intermediate tensor holds a score for every pair of tokens."""

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            outputs = result if isinstance(result, (tuple, list)) else (result,)
            self.size = max([self.size, *(o.numel() for o in outputs if isinstance(o, torch.Tensor))])
            return result

    image, row, column = places([[(64, 64)]])
    tensors, text_mask = states(1, 64 * 64, 2, dtype=torch.float32)
    tiles = neighbor_tiles([[(64, 64)]], image, row, column, 2, False)
    with Largest() as largest, torch.no_grad():
        neighbor_attention(*tensors, text_mask, tiles, 0.3)
    assert 0 < largest.size < (64 * 64) ** 2 // 4
