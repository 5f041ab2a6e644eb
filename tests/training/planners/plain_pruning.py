"""Token pruning as the papers tell it: one sample, one stream, all tokens computed, those let go masked from every query."""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from tests.modeling.masked_reference import Layout


def plain_survivors(
    model: nn.Module, laid_out: Layout, share: Callable[[int], float], ranked_by: Callable[[int], str]
) -> list[torch.Tensor]:
    """Per layer, [S] bool: the visual rows it sees.

    Args:
        share: a layer, counted from 0 -> the share of each image's original tokens it sees.
        ranked_by: a layer -> whose attention decides what it sees: "last", the last row's; "instruction", all text's after the
            last image; "image", that of the image's own rows that are left.
    """
    states, image = laid_out.states, laid_out.image
    alive, probabilities, seen = image >= 0, None, []
    last_image = int((image >= 0).nonzero().max())
    for index, layer in enumerate(model.model.language_model.layers):
        for number in range(int(image.max()) + 1):
            rows = [row for row in range(len(image)) if image[row] == number and alive[row]]
            keep = math.ceil(round(share(index) * int((image == number).sum()), 6))
            if keep < len(rows):
                readers = {"last": [len(image) - 1], "instruction": range(last_image + 1, len(image)), "image": rows}[
                    ranked_by(index)
                ]
                received = {row: sum(float(probabilities[:, reader, row].sum()) for reader in readers) for row in rows}
                for row in sorted(rows, key=lambda row: (-received[row], row))[keep:]:
                    alive[row] = False
        seen.append(alive.clone())
        states, probabilities = _layer(layer, states, laid_out.rope, alive | (image < 0))
    return seen


def _layer(
    layer: nn.Module, states: torch.Tensor, rope: tuple, present: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """states [S, D] -> those after the layer, and attention probabilities [H, S, S]."""
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
