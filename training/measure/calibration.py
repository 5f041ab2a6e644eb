"""Calibration: what each unit, neuron and layer does for visual tokens, measured once on the dense model and cached.

Planners share these statistics. Head activity follows the idea of YOPO (arXiv 2410.06169, eq. 6: how much of a head's
attention goes to the image), counted over the text rows that can see an image, of samples that have one; its released code
counts fixed positions, of text-only samples too.

The statistics come from a plain dense forward written out below, so that every probability and neuron is in reach
whatever the runtime fuses away.

Shape legend: N samples with an image, L layers, U units (key/value groups), H query heads, M FFN neurons, B batch,
T tokens, D hidden size, R largest Chebyshev distance in an image grid.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from data.collator import pictures_of
from modeling.visual_layout import VisualTokens, split_streams
from modeling.visual_plan import VisualPlan
from modeling.whole_file import whole_file
from training.measure.answer_kl import AnswerKL, rows_with_images

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Calibration:
    """Statistics of the dense model on calibration samples; fp32 tensors on the CPU.

    Args:
        activity [N, L, U]: share of attention, in [0, 1], that text rows after the first image give to visual keys; mean
            over those rows and the unit's query heads.
        neuron_importance [L, M]: mean over visual rows of |act(gate) * up|, times the length of the neuron's column of
            `down_proj`: how much the neuron writes.
        neighborhood [L, R + 1]: share of a visual row's attention to visual keys that stays within Chebyshev distance r
            of it in its own image; mean over rows and heads.
        unit_kl [L, U]: answer KL (nats per supervised token) when that unit alone stops serving visual tokens.
    """

    activity: Tensor
    neuron_importance: Tensor
    neighborhood: Tensor
    unit_kl: Tensor

    @property
    def read_share(self) -> Tensor:
        """[L]: share of their attention that text rows give to visual keys, mean over samples and heads."""
        return self.activity.mean(dim=(0, 2))

    def save(self, path: Path) -> None:
        """Writes the statistics. If the process is killed meanwhile, `path` is as it was before."""
        with whole_file(path) as file:
            save_file({name: tensor.contiguous() for name, tensor in vars(self).items()}, file)

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        with safe_open(path, framework="pt") as file:
            return cls(**{name: file.get_tensor(name) for name in file.keys()})


def calibrate(model: PreTrainedModel, batches: Sequence[dict], cache: Path) -> Calibration:
    """Gathers the statistics, or reads them from `cache` where the same weights met the same data before.

    Args:
        model: any plan may be in force; it is restored. Put in eval mode.
        batches: dicts of `data.collator.Collator`; text-only samples are left out.
        cache: folder of calibration files, made where missing.

    Raises:
        UserError: no sample with an image has a supervised answer.
    """
    path = Path(cache) / f"calibration-{_fingerprint(model, batches)}.safetensors"
    if not path.exists():
        unit_kl = _unit_kl(model, AnswerKL(model, batches))
        Calibration(**_gather(model, batches), unit_kl=unit_kl).save(path)
    return Calibration.load(path)


def _fingerprint(model: PreTrainedModel, batches: Sequence[dict]) -> str:
    """A hash of every weight, of the configuration that gives them meaning, and of every tensor of the data."""
    digest = hashlib.blake2b(digest_size=16)
    config = {
        name: value
        for name, value in model.config.to_dict().items()
        if name not in ("visual_plan", "transformers_version")
    }
    digest.update(json.dumps([FORMAT_VERSION, config], sort_keys=True, default=str).encode())
    tensors = [*model.state_dict().items(), *(item for batch in batches for item in sorted(batch.items()))]
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _unit_kl(model: PreTrainedModel, answer_kl: AnswerKL) -> Tensor:
    """[L, U]: what each unit's absence costs, one plan per unit."""
    config = model.config.text_config
    dense = VisualPlan.dense(config.num_hidden_layers)
    units = range(config.num_key_value_heads)
    costs = [
        answer_kl(dense.replace(layer, heads=tuple(other for other in units if other != unit)))
        for layer in tqdm(range(len(dense)), desc="shutting each unit", unit="layer")
        for unit in units
    ]
    return torch.tensor(costs).view(len(dense), -1)


@dataclass(frozen=True)
class DecoderInputs:
    """What a model gives its decoder for one batch: hidden_states [B, T, D], images in place; attention_mask [B, T], 1 for
    tokens, 0 for padding on either side; cosine and sine [B or 1, T, head_dim]; visual rows and where they lie."""

    hidden_states: Tensor
    attention_mask: Tensor
    rope: tuple[Tensor, Tensor]
    visual: VisualTokens


def decoder_inputs(model: PreTrainedModel, inputs: dict) -> DecoderInputs:
    """Runs the model, for whatever its family does before the decoder."""
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
    """The dense decoder in plain arithmetic, layer by layer.

    Yields, per layer: attention probabilities [B, H, T, T] (fp32) and neuron values act(gate) * up [B, T, M].
    """
    hidden_states = inputs.hidden_states
    B, T, _ = hidden_states.shape
    positions = torch.arange(T, device=hidden_states.device)
    visible = (positions[:, None] >= positions) & inputs.attention_mask.bool()[:, None, None, :]  # [B, 1, T, T]
    # A padding row sees itself alone, so that its softmax is defined.
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


@torch.no_grad()
def _gather(model: PreTrainedModel, batches: Sequence[dict]) -> dict[str, Tensor]:
    """The statistics of one dense pass over the batches."""
    activity, neurons, neighborhood, num_samples = [], 0, [], 0
    for batch in tqdm(batches, desc="calibrating", unit="batch"):
        rows = rows_with_images(batch, model.visual_tokens(model.config).values())
        if len(rows["input_ids"]) > 0:
            of_batch = _batch_statistics(model, {key: value.to(model.device) for key, value in rows.items()})
            activity.append(of_batch[0])
            neurons = neurons + of_batch[1]
            neighborhood.append(of_batch[2])
            num_samples += len(rows["input_ids"])
    columns = torch.stack(
        [layer.mlp.down_proj.weight.float().norm(dim=0) for layer in model.model.language_model.layers]
    )
    farthest = max(shares.shape[1] for shares in neighborhood)
    # Beyond the farthest distance in a batch's own grids nothing is left to add.
    padded = [
        torch.cat([shares, shares[:, -1:].expand(-1, farthest - shares.shape[1])], dim=1) for shares in neighborhood
    ]
    return {
        "activity": torch.cat(activity).cpu(),
        "neuron_importance": (neurons / num_samples * columns).cpu(),
        "neighborhood": (sum(padded) / num_samples).cpu(),
    }


def _batch_statistics(model: PreTrainedModel, rows: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Activity [B, L, U] of each sample; sums over samples of the neurons' mean size [L, M] and of the neighbourhood [L, R + 1].

    V counts the visual rows of a sample, packed; the batch's samples may have different numbers of images.
    """
    text = {name: rows[name] for name in ("input_ids", "attention_mask")}
    inputs = decoder_inputs(model, text | model.encode_pictures(pictures_of(rows)))
    visual, mask = inputs.visual, inputs.attention_mask
    is_visual = torch.zeros_like(mask, dtype=torch.bool)
    is_visual[visual.valid.nonzero()[:, 0], visual.index[visual.valid]] = True  # [B, T]
    # Visual rows come first in `slots`, packed: the first is where the sample's first image begins.
    readers = mask.bool() & ~is_visual & (torch.arange(mask.shape[1], device=mask.device) > visual.slots[:, :1])
    beyond = max(side for grid in visual.grids for side in grid)  # farther than any two rows of one grid
    distance = _distances(visual, beyond)  # [B, V, V]

    activity, neurons, neighborhood = [], [], []
    for probabilities, neuron_values in dense_layers(model.model.language_model, inputs):
        to_vision = torch.einsum("bhqk,bk->bhq", probabilities, is_visual.to(probabilities.dtype))
        of_head = (to_vision * readers[:, None]).sum(-1) / readers.sum(-1, keepdim=True).clamp(min=1)  # [B, H]
        activity.append(of_head.unflatten(1, (model.config.text_config.num_key_value_heads, -1)).mean(-1))
        of_neuron = torch.einsum("btm,bt->bm", neuron_values.float().abs(), is_visual.float())
        neurons.append((of_neuron / is_visual.sum(1, keepdim=True)).sum(0))  # [M]
        neighborhood.append(
            sum(
                _neighborhood(
                    probabilities[sample], visual.index[sample], visual.valid[sample], distance[sample], beyond
                )
                for sample in range(len(mask))
            )
        )
    return torch.stack(activity, dim=1), torch.stack(neurons), torch.stack(neighborhood)


def _distances(visual: VisualTokens, beyond: int) -> Tensor:
    """[B, V, V]: Chebyshev distance of two visual rows in their grid; `beyond` for rows of different grids."""
    apart = torch.maximum(
        (visual.row[:, :, None] - visual.row[:, None]).abs(), (visual.column[:, :, None] - visual.column[:, None]).abs()
    )
    return apart.masked_fill(visual.grid[:, :, None] != visual.grid[:, None], beyond)


def _neighborhood(probabilities: Tensor, index: Tensor, valid: Tensor, distance: Tensor, beyond: int) -> Tensor:
    """[R + 1]: one sample's share of visual-to-visual attention within each distance; probabilities [H, T, T]."""
    index, distance = index[valid], distance[valid][:, valid]  # [V], [V, V]
    among_visual = probabilities[:, index][:, :, index]  # [H, V, V]
    shares = among_visual / among_visual.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float).tiny)
    at_distance = torch.zeros(beyond + 1, device=shares.device)
    at_distance.index_add_(0, distance.flatten(), shares.mean(0).flatten())
    return at_distance.cumsum(0)[:beyond] / len(index)
