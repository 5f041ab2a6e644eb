"""How visual tokens are ranked where a plan's `tokens` falls: one score per carried token, higher is better.

Attention that tokens receive is one more product of the ranking rows' queries with the keys, some rows at a time: the fused
attention beside it never holds its probabilities, and no more are held here than of QUERIES_AT_ONCE rows.

Shapes: B batch, T text rows, V visual rows, L keys of a group, H head_dim.
"""

import torch

from .layer_plan import Rank
from .user_error import UserError
from .visual_layout import VisualTokens, answer_starts, place_in_run
from .visual_masks import StageMasks
from .visual_plan import LiveLayer

QUERIES_AT_ONCE = 64


def given_scores(
    rank: Rank, tokens: VisualTokens, fraction: float, class_attention: torch.Tensor | None
) -> torch.Tensor:
    """[B, V], by what is known before any layer, where `fraction` of each image's original tokens is kept.

    Args:
        class_attention: [B, V, blocks], what the vision tower's class token attends to in its last blocks.

    Raises:
        UserError: the rank is by the attention of more blocks than are given.
    """
    if rank.by == "random":
        return _random(rank.seed, tokens)
    if rank.by == "uniform":
        return _evenly_spaced(tokens, fraction)
    given = 0 if class_attention is None else class_attention.shape[2]
    if given < rank.tower_layers:
        raise UserError(
            f"rank by cls_attention: the pictures' features came with the class token's attention in {given} layers of the "
            f"vision tower, the plan wants {rank.tower_layers}; give pictures, or what encode_pictures makes of them"
        )
    return class_attention[..., -rank.tower_layers :].double().sum(-1).float()


def _evenly_spaced(tokens: VisualTokens, fraction: float) -> torch.Tensor:
    """1 at the tokens in the middle of each of k equal parts of an image's remaining n, 0 elsewhere: for i < k, the token of
    number floor((2 i + 1) n / 2 k)."""
    kept, before = tokens.num_kept(fraction), place_in_run(tokens.image)
    remaining = before + place_in_run(tokens.image.flip(1)).flip(1) + 1

    def chosen_before(number: torch.Tensor) -> torch.Tensor:
        return (2 * kept * number + remaining - 1) // (2 * remaining)

    return chosen_before(before + 1) - chosen_before(before)


def _random(seed: int, tokens: VisualTokens) -> torch.Tensor:
    """A hash of the seed, the image's number in its sample and the token's in the image: in integers, so that devices agree."""
    of_image = _mixed(tokens.image + _mixed(torch.full_like(tokens.image, seed) + 0x9E3779B9))
    return _mixed(tokens.place + of_image)


def _mixed(values: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit numbers, held in int64, that spreads near ones over the whole range."""
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
    supervised: torch.Tensor | None,
) -> torch.Tensor:
    """Attention [B, V] received from text, fp32: summed over the ranking rows, mean over heads.

    Args:
        queries: [B, heads, T, H], of the served units. keys: [B, units, L, H], the joint ones.
        rows: as in `Rank`. supervised: [B, S] bool in training, true at answer tokens; rows are then those before answers.
    """
    ranking = _ranking_rows(rows, stage, supervised)
    index = torch.argsort(~ranking, dim=1, stable=True)[:, : int(ranking.sum(1).max())]  # [B, R]
    chosen = queries.gather(2, index[:, None, :, None].expand(-1, queries.shape[1], -1, queries.shape[3]))
    mask = stage.mask.gather(2, index[:, None, :, None].expand(-1, 1, -1, keys.shape[2]))
    counted = ranking.gather(1, index)[:, :, None].expand(-1, -1, stage.visual.slots.shape[1])
    return _received(chosen, keys, scaling, mask, stage.past.slots.shape[1], counted)


def image_scores(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, stage: StageMasks, live: LiveLayer
) -> torch.Tensor:
    """Attention [B, V] received from the visual rows of the same image, fp32: summed over these, mean over heads.

    Args:
        queries: [B, heads, V, H], of the served units. keys: [B, units, L, H], all that they may see.
        live: the layer of both.
    """
    mask = stage.visual_mask(live.read, live.radius, live.bidirectional)
    image, valid = stage.visual.image, stage.visual.valid
    counted = (image[:, :, None] == image[:, None]) & valid[:, :, None]
    return _received(queries, keys, scaling, mask, stage.past.slots.shape[1] if live.read else 0, counted)


@torch.no_grad()
def _received(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, mask: torch.Tensor, first: int, counted: torch.Tensor
) -> torch.Tensor:
    """Attention [B, V] to the V keys from number `first` on, from the pairs `counted` [B, Q, V]; `mask` [B, 1, Q, L]."""
    received = torch.zeros(counted.shape[0], counted.shape[2], dtype=torch.double, device=queries.device)
    keys = keys.float().transpose(2, 3)
    for begin in range(0, queries.shape[2], QUERIES_AT_ONCE):
        rows = slice(begin, begin + QUERIES_AT_ONCE)
        of_units = queries[:, :, rows].float().unflatten(1, (keys.shape[1], -1))  # [B, units, group, rows, H]
        logits = (of_units.flatten(2, 3) @ keys).unflatten(2, of_units.shape[2:4]).flatten(
            1, 2
        ) * scaling  # [B, heads, rows, L]
        weights = logits.masked_fill(~mask[:, :, rows], torch.finfo(logits.dtype).min).softmax(-1)
        of_rows = weights[..., first : first + received.shape[1]].mean(1) * counted[:, rows]  # [B, rows, V]
        received += of_rows.double().sum(1)  # so that equal shares which come from other rows stay equal
    return received.float()


def _ranking_rows(rows: str, stage: StageMasks, supervised: torch.Tensor | None) -> torch.Tensor:
    """[B, T] bool: the text rows from which visual tokens are ranked."""
    text, visual = stage.text, stage.visual
    if supervised is not None:
        starts, answers = (mask.gather(1, text.index) & text.valid for mask in (answer_starts(supervised), supervised))
    if rows == "instruction":
        last_visual = torch.where(visual.valid, visual.slots, -1).max(dim=1, keepdim=True).values
        prompt = text.valid & (text.slots > last_visual)
        return prompt if supervised is None else prompt & ~answers
    if supervised is None:
        last = text.valid.sum(1, keepdim=True) - 1
        return torch.arange(text.valid.shape[1], device=last.device) == last
    return starts
