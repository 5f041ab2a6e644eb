"""Trains the turns of a conversation as if each were the only question about the picture.

A picture has many tokens and a question only some, so it is cheap to ask many questions about one picture. But in a
conversation, later questions can often be answered from earlier answers, and a model learns that instead of looking at
the picture. Here each turn attends only to the picture and to itself. It has the positions that it would have if it
were the only turn. So a batch of conversations trains the same as a batch of single questions, in much less time.

B conversations, S tokens of the longest one.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface

from data.conversations import IGNORE_INDEX


def independent_turns(batch: dict[str, torch.Tensor], image_token_id: int) -> dict[str, torch.Tensor]:
    """Adds an attention mask under which no turn sees another, and position ids that go with it.

    Args:
        batch: a batch of `data.collator.Collator`, padded on the right. Pictures come before the first question.
        image_token_id: id of the placeholder of visual tokens. All turns attend to the tokens up to the last of these.

    Returns:
        A new batch, with attention_mask [B, 1, S, S] bool (query, key) and position_ids [B, S] int64.
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
    # A padding token must see itself, else its output is NaN.
    visible |= torch.eye(input_ids.shape[1], dtype=torch.bool)
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
    """Computes softmax(scaling * q·k) v with plain matrix products. It is registered with transformers.

    On a CPU this trains in half the time of the fused kernel, whose backward pass is slow with such a mask.

    Args:
        query: [B, N, S, H], for N heads of H values.
        key: [B, K, S, H]. Each of its K heads serves N / K heads of the query, one after another.
        value: [B, K, S, H].
        attention_mask: [B, 1, S, S] bool, from `independent_turns`.
        scaling: factor of the scores.

    Returns:
        The output [B, S, N, H], and None in place of attention weights.
    """
    query = query.unflatten(1, (key.shape[1], -1))  # [B, K, N / K, S, H]
    scores = (query * scaling @ key[:, :, None].mT).masked_fill(~attention_mask[:, :, None], float("-inf"))
    return (scores.softmax(dim=-1) @ value[:, :, None]).flatten(1, 2).transpose(1, 2).contiguous(), None


MASKED_ATTENTION = "masked_products"
"""Name of `masked_attention` in transformers."""
AttentionInterface.register(MASKED_ATTENTION, masked_attention)
