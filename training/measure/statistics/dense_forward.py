"""Runs the dense decoder in plain arithmetic, block by block of query rows.

Every attention probability and every neuron is in reach, whatever the runtime fuses. Calibration takes its statistics
from it. Only one block's probabilities exist at a time, so memory grows with the tokens and not with their square.

Shape legend: B batch, T tokens, D hidden size, H query heads, U key/value heads, M FFN neurons, Q query rows of a
block, K keys, the rows up to the last one of the block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from modeling.stream_split import split_streams
from modeling.visual_layout import VisualTokens

BLOCK_ROWS = 128
"""Query rows of one block. Their probabilities are held at once, [B, H, BLOCK_ROWS, T] in fp32."""


@dataclass(frozen=True)
class DecoderInputs:
    """What a model gives its decoder for one batch.

    Attributes:
        hidden_states: [B, T, D] embeddings, with those of the pictures in place.
        attention_mask: [B, T], 1 for tokens and 0 for padding on either side.
        rope: cosine and sine, each [B or 1, T, head_dim].
        visual: which rows are visual, and where they lie in their pictures.
    """

    hidden_states: Tensor
    attention_mask: Tensor
    rope: tuple[Tensor, Tensor]
    visual: VisualTokens


class DenseBlock(NamedTuple):
    """What a layer computes for a block of rows."""

    layer: int
    rows: slice
    probabilities: Tensor
    """[B, H, Q, K] of attention, fp32. Rows after the block's last one are not seen, so they are no keys."""
    neurons: Tensor
    """[B, Q, M], act(gate) * up in the model's dtype."""


class _Reached(Exception):
    """Ends a forward at the module whose arguments are wanted."""


def arguments_of(module: nn.Module, model: PreTrainedModel, inputs: dict) -> tuple[tuple, dict[str, Any]]:
    """Returns the arguments with which a forward of `model` first calls `module`. The forward ends there."""
    caught = []

    def catch(_: nn.Module, args: tuple, kwargs: dict) -> None:
        caught.append((args, kwargs))
        raise _Reached

    hook = module.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model(**inputs, use_cache=False)
    except _Reached:
        pass
    finally:
        hook.remove()
    return caught[0]


def decoder_inputs(model: PreTrainedModel, inputs: dict) -> DecoderInputs:
    """Returns the decoder's inputs for a batch of the model's inputs.

    The model's own forward makes them, so that whatever its family does before the decoder is done.
    """
    decoder = model.model.language_model
    _, given = arguments_of(decoder, model, inputs)
    states, mask = given["inputs_embeds"], inputs["attention_mask"]
    _, visual = split_streams(
        states.shape[:2], mask, given["visual_mask"], given["images"], past_length=0, device=states.device
    )
    return DecoderInputs(states, mask, decoder.rope(states, given.get("position_ids"), 0), visual)


def dense_blocks(decoder: nn.Module, inputs: DecoderInputs) -> Iterator[DenseBlock]:
    """Yields every block of every layer, in order. A block's tensors are not used again, so they may be changed."""
    hidden_states = inputs.hidden_states.clone()
    for number, layer in enumerate(decoder.layers):
        attention, mlp = layer.self_attn, layer.mlp
        normed = layer.input_layernorm(hidden_states)
        query, key, value = (
            projected.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)  # [B, heads, T, head_dim]
            for projected in layer.queries_keys_values(normed)
        )
        query, key = apply_rotary_pos_emb(query, key, *inputs.rope)
        for rows in _blocks(hidden_states.shape[1]):
            probabilities = _probabilities(query[:, :, rows], key[:, :, : rows.stop], rows, inputs, attention.scaling)
            output = _by_unit(probabilities, value.shape[1]).to(value.dtype) @ value[:, :, : rows.stop]
            output = output.view(*probabilities.shape[:3], -1).transpose(1, 2).flatten(2)  # [B, Q, H * head_dim]
            hidden_states[:, rows] += attention.o_proj(output)
            neurons = layer.neurons(layer.post_attention_layernorm(hidden_states[:, rows]))
            hidden_states[:, rows] += mlp.down_proj(neurons)
            yield DenseBlock(number, rows, probabilities, neurons)


def _blocks(length: int) -> Iterator[slice]:
    """Yields the rows of each block."""
    for start in range(0, length, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, length))


def _probabilities(query: Tensor, key: Tensor, rows: slice, inputs: DecoderInputs, scaling: float) -> Tensor:
    """Returns attention [B, H, Q, K] in fp32 of queries [B, H, Q, head_dim] over keys [B, U, K, head_dim]."""
    logits = _by_unit(query, key.shape[1]) @ key.transpose(2, 3)
    logits = logits.view(*query.shape[:3], -1).float().mul_(scaling)
    positions = torch.arange(rows.stop, device=key.device)
    visible = (positions[rows, None] >= positions) & inputs.attention_mask[:, None, None, : rows.stop].bool()
    # Every row sees itself, so that the softmax of a padding row is defined.
    visible = visible | (positions[rows, None] == positions)  # [B, 1, Q, K]
    return logits.masked_fill_(~visible, float("-inf")).softmax(-1)


def _by_unit(by_head: Tensor, num_units: int) -> Tensor:
    """Returns [B, U, H / U * Q, ...] from [B, H, Q, ...]: a unit's heads share its keys, so they stand as rows."""
    return by_head.reshape(by_head.shape[0], num_units, -1, by_head.shape[-1])
