"""Token pruning as the papers describe it, for one sample in one stream.

All tokens are computed in every layer. Tokens that are dropped are masked from every query.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from tests.modeling.masked_reference import Layout


def plain_survivors(
    model: nn.Module, laid_out: Layout, share: Callable[[int], float], ranked_by: Callable[[int], str]
) -> list[torch.Tensor]:
    """Returns [S] bool for each layer: the visual rows that it sees.

    Args:
        share: given a layer, counted from 0, the share of each picture's original tokens that it sees.
        ranked_by: given a layer, whose attention decides which tokens it sees. "last" is the last row, "instruction" is
            all text after the last picture, and "image" is the rows of the token's own picture that are left.
    """
    states, image = laid_out.states, laid_out.image
    alive, probabilities, survivors = image >= 0, None, []
    last_image = int((image >= 0).nonzero().max())
    for index, layer in enumerate(model.model.language_model.layers):
        for number in range(int(image.max()) + 1):
            rows = [row for row in range(len(image)) if image[row] == number and alive[row]]
            num_kept = math.ceil(round(share(index) * int((image == number).sum()), 6))
            if num_kept < len(rows):
                instruction = range(last_image + 1, len(image))
                readers = {"last": [len(image) - 1], "instruction": instruction, "image": rows}[ranked_by(index)]
                received = {row: sum(float(probabilities[:, reader, row].sum()) for reader in readers) for row in rows}
                order = sorted(received, key=lambda row, received=received: (-received[row], row))
                for row in order[num_kept:]:
                    alive[row] = False
        survivors.append(alive.clone())
        states, probabilities = _layer(layer, states, laid_out.rope, alive | (image < 0))
    return survivors


def _layer(
    layer: nn.Module, states: torch.Tensor, rope: tuple, present: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the states [S, D] after a layer, and its attention probabilities [H, S, S]."""
    attention, length = layer.self_attn, len(states)
    normed = layer.input_layernorm(states[None])
    queries, keys, values = (
        project(normed).view(1, length, -1, attention.head_dim).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    queries, keys = apply_rotary_pos_emb(queries, keys, rope[0][None], rope[1][None])
    groups = queries.shape[1] // keys.shape[1]
    visible = torch.ones(length, length, dtype=torch.bool).tril() & present | torch.eye(length, dtype=torch.bool)
    logits = (queries @ repeat_kv(keys, groups).transpose(2, 3))[0] * attention.head_dim**-0.5
    probabilities = logits.masked_fill(~visible, -torch.inf).softmax(-1)
    mixed = (probabilities @ repeat_kv(values, groups)[0]).transpose(0, 1).reshape(length, -1)
    states = states + attention.o_proj(mixed)
    return states + layer.mlp(layer.post_attention_layernorm(states)), probabilities
