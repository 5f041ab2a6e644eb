"""The dense model's statistics on one batch of samples with pictures, taken block by block of query rows.

Shape legend: L layers, U units (key/value groups), H query heads, M FFN neurons, B batch, T tokens, V visual rows of a
sample, Q query rows of a block, K keys of a block, R largest Chebyshev distance in a picture's grid.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from data.collator import pictures_of
from modeling.visual_flops import DecoderShape
from modeling.visual_layout import VisualTokens
from training.measure.answer_kl import samples_with_images
from training.measure.statistics.dense_forward import (
    BLOCK_ROWS,
    DecoderInputs,
    DenseBlock,
    decoder_inputs,
    dense_blocks,
)
from training.progress import Progress


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
    """Returns the statistics of each of this rank's batches that has a picture, with the batch's number.

    Args:
        model: a sparse model with the dense weights. It is put in eval mode.
    """
    found = []
    for number, batch in Progress(batches, desc="calibrating", unit="batch"):
        samples = samples_with_images(batch, model.visual_tokens(model.config).values())
        if len(samples["input_ids"]) > 0:
            on_device = {key: value.to(model.device) for key, value in samples.items()}
            found.append((number, batch_statistics(model.eval(), on_device)))
    return found


@torch.no_grad()
def batch_statistics(model: PreTrainedModel, samples: dict) -> BatchStatistics:
    """Returns the statistics of a batch of samples with pictures. They may have different numbers of pictures."""
    text = {name: samples[name] for name in ("input_ids", "attention_mask")}
    inputs = decoder_inputs(model, text | model.encode_pictures(pictures_of(samples)))
    sums = _Sums(model.config.text_config, inputs)
    for block in dense_blocks(model.model.language_model, inputs):
        sums.add(block)
    return sums.statistics()


def calibration_bytes(decoder: DecoderShape, batch_size: int, tokens: int, bytes_per_value: int) -> int:
    """Returns the most bytes that the statistics of a batch need at once, besides the weights and the vision tower.

    A block's probabilities are held twice in fp32, as logits and probabilities or as probabilities and a copy whose
    heads are weighed, and once in the model's dtype. A row of a layer holds its embedding, hidden and normed state,
    query, key and value, the last three also before their rotation. Every part is in proportion to `tokens`.

    For InternVL2-26B in bfloat16 at batch size 4, samples of 3,400 tokens need 1.8 GiB. The probabilities of all
    rows, [B, H, T, T], would be 8.3 GiB alone.

    Args:
        tokens: rows of the padded batch, visual ones included.
        bytes_per_value: of the model's dtype.
    """
    rows = min(BLOCK_ROWS, tokens)
    probabilities = decoder.num_heads * rows * tokens * (2 * 4 + bytes_per_value)
    pairs = rows * tokens * (3 * 4 + 2 * 8)  # three integers of positions, and share and distance in eight bytes
    row = (3 * decoder.hidden_size + 2 * (decoder.query_size + 2 * decoder.kv_size)) * bytes_per_value
    neurons = rows * decoder.intermediate_size * (3 * bytes_per_value + 8)  # gate, up, product, and sizes in fp32
    return batch_size * (probabilities + pairs + tokens * row + neurons)


class _Sums:
    """Adds up the statistics of a batch, block by block.

    Args:
        text: config of the decoder.
        inputs: what the decoder is given.
    """

    def __init__(self, text: PreTrainedConfig, inputs: DecoderInputs):
        visual, mask = inputs.visual, inputs.attention_mask
        self._grid, self._row, self._column = (
            _in_sequence(values, visual, mask.shape[1]) for values in (visual.grid, visual.row, visual.column)
        )
        self._is_visual = (self._grid >= 0).float()  # [B, T]
        # Visual rows stand on the left in `slots`, so the first one is where the sample's first picture begins.
        after_picture = torch.arange(mask.shape[1], device=mask.device) > visual.slots[:, :1]
        self._readers = (mask.bool() & (self._grid < 0) & after_picture).float()  # [B, T]
        self._beyond = max(
            side for grids in visual.grids for grid in grids for side in grid
        )  # larger than any distance within a grid
        self._num_units = text.num_key_value_heads
        self._num_heads = text.num_attention_heads
        layers, batch = text.num_hidden_layers, len(mask)
        self._activity = mask.new_zeros(layers, batch, self._num_heads, dtype=torch.float)
        self._neurons = mask.new_zeros(layers, text.intermediate_size, dtype=torch.float)
        self._at_distance = mask.new_zeros(layers, self._beyond + 1, dtype=torch.double)

    def add(self, block: DenseBlock) -> None:
        """Adds a block's part."""
        layer, rows, probabilities, neurons = block
        per_sample = self._is_visual / self._is_visual.sum(1, keepdim=True)  # [B, T]: the weight of a row in its mean
        to_vision = torch.einsum("bhqk,bk->bhq", probabilities, self._is_visual[:, : rows.stop])
        self._activity[layer] += (to_vision * self._readers[:, None, rows]).sum(-1)
        self._neurons[layer] += torch.einsum("bqm,bq->m", neurons.float().abs_(), per_sample[:, rows])
        share = per_sample[:, None, rows] / to_vision.clamp(min=torch.finfo(torch.float).tiny) / self._num_heads
        shares = torch.einsum("bhqk,bhq->bqk", probabilities, share)  # of a visual row's attention to visual keys
        self._at_distance[layer] += torch.bincount(
            self._distances(rows).flatten(), shares.double().flatten(), minlength=self._beyond + 1
        )

    def statistics(self) -> BatchStatistics:
        """Returns the statistics of all blocks that were added."""
        activity = self._activity / self._readers.sum(1)[:, None].clamp(min=1)  # [L, B, H]
        activity = activity.unflatten(2, (self._num_units, -1)).mean(-1).transpose(0, 1)
        neighborhood = self._at_distance.cumsum(1)[:, : self._beyond].float()
        return BatchStatistics(activity.cpu(), self._neurons.cpu(), neighborhood.cpu())

    def _distances(self, rows: slice) -> Tensor:
        """Returns [B, Q, K]: the Chebyshev distance of two rows in their grid, or `beyond` if they are not in one."""
        row, column = ((x[:, rows, None] - x[:, None, : rows.stop]).abs_() for x in (self._row, self._column))
        distance = torch.maximum(row, column)
        return distance.masked_fill_(self._grid[:, rows, None] != self._grid[:, None, : rows.stop], self._beyond)


def _in_sequence(values: Tensor, visual: VisualTokens, length: int) -> Tensor:
    """Returns [B, T] int32: the values [B, V] of visual rows where these stand, and -1 elsewhere."""
    rows = torch.full((len(values), length), -1, dtype=torch.int, device=values.device)
    sample = visual.valid.nonzero()[:, 0]
    rows[sample, visual.index[visual.valid]] = values[visual.valid].int()
    return rows
