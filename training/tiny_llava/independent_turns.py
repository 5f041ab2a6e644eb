"""Turns of a conversation as questions of their own about the same pictures.

A picture costs many tokens and a question few, so a conversation asks many questions about one picture. Read as a
conversation, later questions can be answered from earlier answers instead of the picture, and a model does learn that
instead. Here each turn attends to the pictures and to itself alone, at the positions it would have if it were the only
one: a batch trains what a batch of single questions would, at a fraction of the cost.

B conversations, S tokens of the longest one.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface

from data.conversations import IGNORE_INDEX


def independent_turns(batch: dict[str, torch.Tensor], image_token_id: int) -> dict[str, torch.Tensor]:
    """The batch with an attention mask that keeps turns apart, and position ids to go with it.

    Args:
        batch: of `data.collator.Collator`, padded on the right; pictures come before the first question.
        image_token_id: the placeholder of visual tokens. All up to the last one is shared by the turns.

    Returns:
        The batch with attention_mask [B, 1, S, S] bool (query, key) and position_ids [B, S] int64.
    """
    input_ids, labels = batch["input_ids"], batch["labels"]
    padding = batch["attention_mask"] == 0  # [B, S]
    index = torch.arange(input_ids.shape[1]).expand_as(input_ids)  # [B, S]
    num_shared = (index + 1).where(input_ids == image_token_id, 0).amax(dim=1, keepdim=True)  # [B, 1]
    shared = index < num_shared
    supervised = labels != IGNORE_INDEX
    ends = supervised & ~F.pad(supervised[:, 1:], (0, 1))  # the last token of each answer
    turn = (ends.cumsum(dim=1) - ends.long()).masked_fill(shared, -1)
    starts = (index == num_shared) | F.pad(ends[:, :-1], (1, 0))
    turn_start = index.where(starts, 0).cummax(dim=1).values
    same_turn = turn[:, :, None] == turn[:, None, :]
    visible = (same_turn | shared[:, None, :]) & ~padding[:, None, :] & (index[:, :, None] >= index[:, None, :])
    visible |= torch.eye(input_ids.shape[1], dtype=torch.bool)  # a padding row that sees nothing would be NaN
    position_ids = index.where(shared, index - turn_start + num_shared)
    return {**batch, "attention_mask": visible[:, None], "position_ids": position_ids}


def masked_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """softmax(q·k) v under a mask of any shape, product by product.

    On a CPU this trains in half the time of the fused kernel, whose backward pass makes little of such a mask.

    Args:
        query, key, value: [B, N, S, H].
        attention_mask: of `independent_turns`.
        scaling: factor of the scores.

    Returns:
        [B, S, N, H], and None where other implementations return weights.
    """
    scores = (query * scaling @ key.mT).masked_fill(~attention_mask, float("-inf"))
    return (scores.softmax(dim=-1) @ value).transpose(1, 2).contiguous(), None


MASKED_ATTENTION = "masked_products"
AttentionInterface.register(MASKED_ATTENTION, masked_attention)
