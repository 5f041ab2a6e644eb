"""The statistics of a batch from whole attention matrices [B, H, T, T], as a slow reference."""

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from data.collator import pictures_of
from training.measure.statistics.batch_statistics import BatchStatistics
from training.measure.statistics.dense_forward import decoder_inputs


@torch.no_grad()
def statistics_of_full_matrices(model, samples: dict) -> BatchStatistics:
    text = {name: samples[name] for name in ("input_ids", "attention_mask")}
    inputs = decoder_inputs(model, text | model.encode_pictures(pictures_of(samples)))
    visual, mask = inputs.visual, inputs.attention_mask
    is_visual = torch.zeros_like(mask, dtype=torch.bool)
    is_visual[visual.valid.nonzero()[:, 0], visual.index[visual.valid]] = True  # [B, T]
    readers = mask.bool() & ~is_visual & (torch.arange(mask.shape[1]) > visual.slots[:, :1])
    beyond = max(side for grids in visual.grids for grid in grids for side in grid)
    rows, columns = ((x[:, :, None] - x[:, None]).abs() for x in (visual.row, visual.column))
    distance = torch.maximum(rows, columns).masked_fill(visual.grid[:, :, None] != visual.grid[:, None], beyond)
    activity, neuron_sums, neighborhood = [], [], []
    for probabilities, neurons in full_layers(model.model.language_model, inputs):
        to_vision = torch.einsum("bhqk,bk->bhq", probabilities, is_visual.float())
        by_head = (to_vision * readers[:, None]).sum(-1) / readers.sum(-1, keepdim=True).clamp(min=1)
        activity.append(by_head.unflatten(1, (model.config.text_config.num_key_value_heads, -1)).mean(-1))
        sizes = torch.einsum("btm,bt->bm", neurons.float().abs(), is_visual.float())
        neuron_sums.append((sizes / is_visual.sum(1, keepdim=True)).sum(0))
        neighborhood.append(
            sum(
                sample_neighborhood(
                    probabilities[sample], visual.index[sample], visual.valid[sample], distance[sample], beyond
                )
                for sample in range(len(mask))
            )
        )
    return BatchStatistics(torch.stack(activity, dim=1), torch.stack(neuron_sums), torch.stack(neighborhood))


def full_layers(decoder, inputs):
    hidden_states = inputs.hidden_states
    B, T, _ = hidden_states.shape
    positions = torch.arange(T)
    visible = (positions[:, None] >= positions) & inputs.attention_mask.bool()[:, None, None, :]
    visible = visible | torch.eye(T, dtype=torch.bool)
    for layer in decoder.layers:
        attention = layer.self_attn
        normed = layer.input_layernorm(hidden_states)
        query, key, value = (
            projected.view(B, T, -1, attention.head_dim).transpose(1, 2)
            for projected in layer.queries_keys_values(normed)
        )
        query, key = apply_rotary_pos_emb(query, key, *inputs.rope)
        groups = query.shape[1] // key.shape[1]
        logits = query @ repeat_kv(key, groups).transpose(2, 3) * attention.scaling
        probabilities = logits.float().masked_fill(~visible, float("-inf")).softmax(-1)
        output = probabilities.to(value.dtype) @ repeat_kv(value, groups)
        hidden_states = hidden_states + attention.o_proj(output.transpose(1, 2).reshape(B, T, -1))
        neurons = layer.neurons(layer.post_attention_layernorm(hidden_states))
        hidden_states = hidden_states + layer.mlp.down_proj(neurons)
        yield probabilities, neurons


def sample_neighborhood(probabilities: Tensor, index: Tensor, valid: Tensor, distance: Tensor, beyond: int) -> Tensor:
    index, distance = index[valid], distance[valid][:, valid]
    among_visual = probabilities[:, index][:, :, index]  # [H, V, V]
    shares = among_visual / among_visual.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float).tiny)
    at_distance = torch.zeros(beyond + 1)
    at_distance.index_add_(0, distance.flatten(), shares.mean(0).flatten())
    return at_distance.cumsum(0)[:beyond] / len(index)
