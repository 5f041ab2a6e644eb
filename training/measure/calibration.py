"""Calibration: what each unit, neuron and layer does for visual tokens in the dense model, measured once and cached.

Planners share these statistics. Head activity follows YOPO (arXiv 2410.06169, eq. 6): how much of a head's attention
goes to the picture. Here it is counted over the text rows that can see a picture, in samples that have one. YOPO's
released code counts fixed positions, in text-only samples too. The forward pass behind the statistics is that of
dense_forward.py.

Shape legend: N samples with a picture, L layers, U units (key/value groups), H query heads, M FFN neurons, B batch,
T tokens, V visual rows of a sample, R largest Chebyshev distance in a picture's grid.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from data.collator import pictures_of
from modeling.visual_layout import VisualTokens
from modeling.visual_plan import VisualPlan
from modeling.whole_file import whole_file
from training.measure.answer_kl import AnswerKL, OwnAnswers, samples_with_images
from training.measure.dense_forward import decoder_inputs, dense_layers
from training.progress import Progress
from training.ranks import OnAllRanks, alone, in_order, own_share

FORMAT_VERSION = 1
"""Version of the statistics. A new one makes cached files of older versions unused."""


@dataclass(frozen=True)
class Calibration:
    """Statistics of the dense model on calibration samples, as fp32 tensors on the CPU.

    Args:
        activity: [N, L, U] share of attention, in [0, 1], that text rows after the first picture give to visual keys.
            It is the mean over those rows and over the unit's query heads.
        neuron_importance: [L, M] how much a neuron writes on visual rows. It is the mean over those rows of
            |act(gate) * up|, times the length of the neuron's column of `down_proj`.
        neighborhood: [L, R + 1] share, in [0, 1], of a visual row's attention to visual keys that stays within each
            Chebyshev distance from 0 on, in its own picture. It is the mean over rows and heads.
        unit_kl: [L, U] answer KL, in nats per supervised token, if this unit alone stops serving visual tokens.
    """

    activity: Tensor
    neuron_importance: Tensor
    neighborhood: Tensor
    unit_kl: Tensor

    @property
    def read_share(self) -> Tensor:
        """[L] share of their attention that text rows give to visual keys, mean over samples and heads."""
        return self.activity.mean(dim=(0, 2))

    def save(self, path: Path) -> None:
        """Writes the statistics to a safetensors file, whole or not at all."""
        with whole_file(path) as file:
            save_file({name: tensor.contiguous() for name, tensor in vars(self).items()}, file)

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Returns the statistics that `save` wrote."""
        with safe_open(path, framework="pt") as file:
            return cls(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  (safe_open is no dict)


def calibrate(
    model: PreTrainedModel,
    batches: Sequence[dict],
    cache: Path,
    on_all_ranks: OnAllRanks | None = None,
) -> Calibration:
    """Returns the statistics of a model.

    They are read from `cache` if they were measured before for the same weights and data.

    Args:
        model: a sparse model with the dense weights. Any plan may be in force, and it is restored. The model is put in
            eval mode.
        batches: dicts that `data.collator.Collator` returns. Text-only samples are left out.
        cache: folder of calibration files. It is made if it is missing.
        on_all_ranks: does `measuring_tasks` on every rank. None measures all batches in this process.

    Raises:
        UserError: no sample with an image has a supervised answer.
    """
    path = Path(cache) / f"calibration-{_fingerprint(model, batches)}.safetensors"
    if not path.exists():
        on_all_ranks = on_all_ranks or alone(measuring_tasks(model, batches))
        unit_kl = _unit_kl(model, AnswerKL(model, batches, on_all_ranks))
        Calibration(**_mean_statistics(model, in_order(on_all_ranks("statistics"))), unit_kl=unit_kl).save(path)
    return Calibration.load(path)


def measuring_tasks(model: PreTrainedModel, batches: Sequence[dict]) -> dict[str, Callable[..., Any]]:
    """Returns what `calibrate` and `AnswerKL` ask of every rank, given all batches."""
    own = own_share(batches)
    return {**OwnAnswers(model, own).tasks, "statistics": lambda: own_statistics(model, own)}


def _fingerprint(model: PreTrainedModel, batches: Sequence[dict]) -> str:
    """Returns a hash of all weights, of the config that gives them meaning, and of all tensors of the data."""
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
    """Returns [L, U]: the answer KL without each unit. Each of them is one plan."""
    config = model.config.text_config
    dense = VisualPlan.dense(config.num_hidden_layers)
    units = range(config.num_key_value_heads)
    kls = [
        answer_kl(dense.replace(layer, heads=tuple(other for other in units if other != unit)))
        for layer in Progress(range(len(dense)), desc="shutting each unit", unit="layer")
        for unit in units
    ]
    return torch.tensor(kls).view(len(dense), -1)


class BatchStatistics(NamedTuple):
    """Statistics of one batch of samples with pictures, fp32 on the CPU."""

    activity: Tensor
    """[B, L, U] of each sample."""
    neuron_sums: Tensor
    """[L, M] sum over samples of the mean size of each neuron's value."""
    neighborhood_sums: Tensor
    """[L, R + 1] sum over samples, up to the largest distance in the batch."""


@torch.no_grad()
def own_statistics(model: PreTrainedModel, batches: Sequence[tuple[int, dict]]) -> list[tuple[int, BatchStatistics]]:
    """Returns the statistics of each of this rank's batches that has a picture, with the batch's number."""
    found = []
    for number, batch in Progress(batches, desc="calibrating", unit="batch"):
        samples = samples_with_images(batch, model.visual_tokens(model.config).values())
        if len(samples["input_ids"]) > 0:
            on_device = {key: value.to(model.device) for key, value in samples.items()}
            statistics = _batch_statistics(model, on_device)
            found.append((number, BatchStatistics(*(tensor.cpu() for tensor in statistics))))
    return found


@torch.no_grad()
def _mean_statistics(model: PreTrainedModel, batches: Sequence[BatchStatistics]) -> dict[str, Tensor]:
    """Returns the statistics over all samples, by name, given those of each batch."""
    num_samples = sum(len(batch.activity) for batch in batches)
    layers = model.model.language_model.layers
    column_lengths = torch.stack([layer.mlp.down_proj.weight.float().norm(dim=0).cpu() for layer in layers])
    num_distances = max(batch.neighborhood_sums.shape[1] for batch in batches)
    # Beyond the largest distance in a batch's own grids, the share does not grow further.
    padded = [
        torch.cat([sums, sums[:, -1:].expand(-1, num_distances - sums.shape[1])], dim=1)
        for sums in (batch.neighborhood_sums for batch in batches)
    ]
    neuron_sums = sum(batch.neuron_sums for batch in batches)
    return {
        "activity": torch.cat([batch.activity for batch in batches]),
        "neuron_importance": neuron_sums / num_samples * column_lengths,
        "neighborhood": sum(padded) / num_samples,
    }


def _batch_statistics(model: PreTrainedModel, samples: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the statistics of a batch of samples with pictures.

    These are the activity [B, L, U] of each sample, the sum over samples of the neurons' mean size [L, M], and the
    sum over samples of the neighbourhood [L, R + 1]. The samples may have different numbers of pictures.
    """
    text = {name: samples[name] for name in ("input_ids", "attention_mask")}
    inputs = decoder_inputs(model, text | model.encode_pictures(pictures_of(samples)))
    visual, mask = inputs.visual, inputs.attention_mask
    is_visual = torch.zeros_like(mask, dtype=torch.bool)
    is_visual[visual.valid.nonzero()[:, 0], visual.index[visual.valid]] = True  # [B, T]
    # Visual rows stand on the left in `slots`, so the first one is where the sample's first picture begins.
    readers = mask.bool() & ~is_visual & (torch.arange(mask.shape[1], device=mask.device) > visual.slots[:, :1])
    beyond = max(side for grid in visual.grids for side in grid)  # larger than any distance within a grid
    distance = _distances(visual, beyond)  # [B, V, V]

    activity, neuron_sums, neighborhood_sums = [], [], []
    for probabilities, neurons in dense_layers(model.model.language_model, inputs):
        to_vision = torch.einsum("bhqk,bk->bhq", probabilities, is_visual.to(probabilities.dtype))
        head_activity = (to_vision * readers[:, None]).sum(-1) / readers.sum(-1, keepdim=True).clamp(min=1)  # [B, H]
        activity.append(head_activity.unflatten(1, (model.config.text_config.num_key_value_heads, -1)).mean(-1))
        neuron_sizes = torch.einsum("btm,bt->bm", neurons.float().abs(), is_visual.float())
        neuron_sums.append((neuron_sizes / is_visual.sum(1, keepdim=True)).sum(0))  # [M]
        neighborhood_sums.append(
            sum(
                _neighborhood(
                    probabilities[sample], visual.index[sample], visual.valid[sample], distance[sample], beyond
                )
                for sample in range(len(mask))
            )
        )
    return torch.stack(activity, dim=1), torch.stack(neuron_sums), torch.stack(neighborhood_sums)


def _distances(visual: VisualTokens, beyond: int) -> Tensor:
    """Returns [B, V, V]: the Chebyshev distance of two visual rows in their grid, or `beyond` if their grids differ."""
    distance = torch.maximum(
        (visual.row[:, :, None] - visual.row[:, None]).abs(), (visual.column[:, :, None] - visual.column[:, None]).abs()
    )
    return distance.masked_fill(visual.grid[:, :, None] != visual.grid[:, None], beyond)


def _neighborhood(probabilities: Tensor, index: Tensor, valid: Tensor, distance: Tensor, beyond: int) -> Tensor:
    """Returns [R + 1]: the share of one sample's visual-to-visual attention that stays within each distance.

    Args:
        probabilities: [H, T, T].
        index: [V] the rows of visual tokens among the sample's tokens.
        valid: [V] bool, false where `index` is padding.
        distance: [V, V] distances between visual rows. `beyond` stands for different grids.
    """
    index, distance = index[valid], distance[valid][:, valid]  # [V], [V, V]
    among_visual = probabilities[:, index][:, :, index]  # [H, V, V]
    shares = among_visual / among_visual.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float).tiny)
    at_distance = torch.zeros(beyond + 1, device=shares.device)
    at_distance.index_add_(0, distance.flatten(), shares.mean(0).flatten())
    return at_distance.cumsum(0)[:beyond] / len(index)
