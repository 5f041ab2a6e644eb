"""How visual tokens are ranked where a plan's `tokens` falls. Each carried token gets one score. Higher is better.

The attention that tokens receive is computed by one more product of the ranking rows' queries with the keys, because
the fused attention of the layer gives no probabilities. At most QUERIES_AT_ONCE rows of probabilities are in memory at
a time.

Shapes: B batch, S sequence rows, T text rows, V visual rows, Q queries, L keys, H head_dim.
"""

import torch

from .host_memory import to_device
from .layer_plan import Rank
from .user_error import UserError
from .visual_layout import VisualTokens, place_in_run
from .visual_masks import StageMasks
from .visual_plan import LiveLayer

QUERIES_AT_ONCE = 64


def scores_before_layers(
    rank: Rank, tokens: VisualTokens, fraction: float, class_attention: torch.Tensor | None
) -> torch.Tensor:
    """Returns scores [B, V] by a ranking that needs no layer of the decoder: random, uniform or cls_attention.

    Args:
        tokens: the visual rows carried so far.
        fraction: share of each image's original tokens that is kept.
        class_attention: [B, V, blocks], the attention of the vision tower's class token in its last blocks.

    Raises:
        UserError: the ranking wants the attention of more blocks than are given.
    """
    if rank.by == "random":
        return _random_scores(rank.seed, tokens)
    if rank.by == "uniform":
        return _evenly_spaced_scores(tokens, fraction)
    given = 0 if class_attention is None else class_attention.shape[2]
    if class_attention is None or given < rank.tower_layers:
        raise UserError(
            f"rank by cls_attention: the pictures' features came with the class token's attention in {given} "
            f"layers of the vision tower, the plan wants {rank.tower_layers}; "
            "give pictures, or what encode_pictures makes of them"
        )
    return class_attention[..., -rank.tower_layers :].double().sum(-1).float()


def _evenly_spaced_scores(tokens: VisualTokens, fraction: float) -> torch.Tensor:
    """Returns 1 at evenly spaced tokens and 0 elsewhere, [B, V] long.

    An image's remaining n tokens are cut into k equal parts, of which the middle tokens get 1. For i < k that is the
    token with number floor((2 i + 1) n / 2 k).
    """
    kept, before = tokens.num_kept(fraction), place_in_run(tokens.image)
    remaining = before + place_in_run(tokens.image.flip(1)).flip(1) + 1

    def chosen_before(number: torch.Tensor) -> torch.Tensor:
        return (2 * kept * number + remaining - 1) // (2 * remaining)

    return chosen_before(before + 1) - chosen_before(before)


def _random_scores(seed: int, tokens: VisualTokens) -> torch.Tensor:
    """Returns a hash [B, V] of the seed, the image's number in its sample, and the token's number in the image.

    It is computed in integers, so that all devices give the same.
    """
    of_image = _hash32(tokens.image + _hash32(torch.full_like(tokens.image, seed) + 0x9E3779B9))
    return _hash32(tokens.place + of_image)


def _hash32(values: torch.Tensor) -> torch.Tensor:
    """Returns a bijection of 32-bit numbers that spreads near ones over the whole range. They are held in int64."""
    for _ in range(2):
        values = values & 0xFFFFFFFF
        values = (values ^ (values >> 16)) * 0x45D9F3B
    values = values & 0xFFFFFFFF
    return values ^ (values >> 16)


def text_scores(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scaling: float,
    stage: StageMasks,
    rows: str,
) -> torch.Tensor:
    """Returns the attention [B, V] that visual tokens receive from text, fp32, sum over the ranking rows, mean over
    heads.

    Args:
        queries: [B, heads, T, H], the query heads of the units that serve visual tokens.
        keys: [B, units, L, H], the joint keys of these units.
        scaling: factor of the logits.
        rows: as in `Rank`.
    """
    assert stage.mask is not None, "visual rows are ranked, so this forward has visual rows and a mask"
    index, ranking = (to_device(part, queries.device) for part in stage.text.ranking[rows])  # [B, ranking rows]
    chosen = queries.gather(2, index[:, None, :, None].expand(-1, queries.shape[1], -1, queries.shape[3]))
    mask = stage.mask.gather(2, index[:, None, :, None].expand(-1, 1, -1, keys.shape[2]))
    counted = ranking[:, :, None].expand(-1, -1, stage.visual.slots.shape[1])
    return _received_attention(chosen, keys, scaling, mask, stage.past.slots.shape[1], counted)


def image_scores(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, stage: StageMasks, live: LiveLayer
) -> torch.Tensor:
    """Returns the attention [B, V] that visual tokens receive from visual rows of their image, fp32.

    It is the sum over these rows, and the mean over heads.

    Args:
        queries: [B, heads, V, H], the query heads of the units that serve visual tokens.
        keys: [B, units, L, H], all keys that visual rows may see.
        scaling: factor of the logits.
        live: the layer that both come from.
    """
    mask = stage.visual_mask(live.read, live.radius, live.bidirectional)
    image, valid = stage.visual.image, stage.visual.valid
    counted = (image[:, :, None] == image[:, None]) & valid[:, :, None]
    return _received_attention(queries, keys, scaling, mask, stage.past.slots.shape[1] if live.read else 0, counted)


@torch.no_grad()
def _received_attention(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, mask: torch.Tensor, first: int, counted: torch.Tensor
) -> torch.Tensor:
    """Returns the attention [B, V] that V keys receive, fp32.

    Args:
        queries: [B, heads, Q, H].
        keys: [B, units, L, H].
        mask: [B, 1, Q, L] bool.
        first: number of the first of the V keys among the L.
        counted: [B, Q, V] bool, the pairs that count.
    """
    received = torch.zeros(counted.shape[0], counted.shape[2], dtype=torch.double, device=queries.device)
    keys = keys.float().transpose(2, 3)
    for begin in range(0, queries.shape[2], QUERIES_AT_ONCE):
        rows = slice(begin, begin + QUERIES_AT_ONCE)
        grouped = queries[:, :, rows].float().unflatten(1, (keys.shape[1], -1))  # [B, units, group, rows, H]
        products = grouped.flatten(2, 3) @ keys  # [B, units, group * rows, L]
        logits = products.unflatten(2, grouped.shape[2:4]).flatten(1, 2) * scaling  # [B, heads, rows, L]
        weights = logits.masked_fill(~mask[:, :, rows], torch.finfo(logits.dtype).min).softmax(-1)
        by_row = weights[..., first : first + received.shape[1]].mean(1) * counted[:, rows]  # [B, rows, V]
        received += by_row.double().sum(1)  # so that equal shares which come from other rows stay equal
    return received.float()
