"""Runs the dense decoder in plain arithmetic, layer by layer.

Every attention probability and every neuron is in reach, whatever the runtime fuses. Calibration takes its statistics
from it.

Shape legend: B batch, T tokens, D hidden size, H query heads, M FFN neurons.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from modeling.stream_split import split_streams
from modeling.visual_layout import VisualTokens


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


def decoder_inputs(model: PreTrainedModel, inputs: dict) -> DecoderInputs:
    """Returns the decoder's inputs for a batch of the model's inputs.

    The whole model runs once, so that whatever its family does before the decoder is done.
    """
    caught = {}
    decoder = model.model.language_model
    hook = decoder.register_forward_pre_hook(lambda module, args, kwargs: caught.update(kwargs), with_kwargs=True)
    model(**inputs, use_cache=False)
    hook.remove()
    states, mask = caught["inputs_embeds"], inputs["attention_mask"]
    _, visual = split_streams(
        states.shape[:2], mask, caught["visual_mask"], caught["images"], past_length=0, device=states.device
    )
    return DecoderInputs(states, mask, decoder.rope(states, caught.get("position_ids"), 0), visual)


def dense_layers(decoder: nn.Module, inputs: DecoderInputs) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the attention probabilities [B, H, T, T] in fp32 and the neurons [B, T, M] of each layer.

    A neuron is act(gate) * up, in the model's dtype.
    """
    hidden_states = inputs.hidden_states
    B, T, _ = hidden_states.shape
    positions = torch.arange(T, device=hidden_states.device)
    visible = (positions[:, None] >= positions) & inputs.attention_mask.bool()[:, None, None, :]  # [B, 1, T, T]
    # Every row sees itself, so that the softmax of a padding row is defined.
    visible = visible | torch.eye(T, dtype=torch.bool, device=positions.device)
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        normed = layer.input_layernorm(hidden_states)
        query, key, value = (
            projected.view(B, T, -1, attention.head_dim).transpose(1, 2)  # [B, heads, T, head_dim]
            for projected in (layer.queries(normed), layer.keys(normed), layer.values(normed))
        )
        query, key = apply_rotary_pos_emb(query, key, *inputs.rope)
        groups = query.shape[1] // key.shape[1]
        logits = query @ repeat_kv(key, groups).transpose(2, 3) * attention.scaling
        probabilities = logits.float().masked_fill(~visible, float("-inf")).softmax(-1)  # [B, H, T, T]
        output = probabilities.to(value.dtype) @ repeat_kv(value, groups)
        hidden_states = hidden_states + attention.o_proj(output.transpose(1, 2).reshape(B, T, -1))
        neurons = layer.neurons(layer.post_attention_layernorm(hidden_states))  # [B, T, M]
        hidden_states = hidden_states + mlp.down_proj(neurons)
        yield probabilities, neurons
