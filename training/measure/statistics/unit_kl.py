"""How much the answers change if one unit alone stops serving visual tokens, for every unit of every layer.

Below the unit's layer, all states are those of the dense model. So a batch goes up the dense decoder once, and from
each layer on it is run once for each unit of that layer. Of the layers that a forward pass per unit would run, this
runs half, and neither embeds nor encodes anything again.

Shape legend: L layers, U units, B batch, S rows of the batch, T text rows, V visual rows, D hidden size, A supervised
answer tokens of a batch.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modeling.sparse_layer import SharedInputs
from modeling.visual_layout import join_streams
from modeling.visual_plan import VisualPlan
from training.measure.answer_kl import OwnAnswers, kl_sum
from training.measure.statistics.dense_forward import arguments_of


class UnitKL(NamedTuple):
    """The answer KL of one batch without each unit."""

    sums: list[list[float]]
    """[L][U] in nats, summed over supervised tokens."""
    num_tokens: int


class _Streams(NamedTuple):
    """What a layer takes: text rows [B, T, D] and visual rows [B, V, D]."""

    text: Tensor
    visual: Tensor


@torch.no_grad()
def own_unit_kl(answers: OwnAnswers, numbers: Collection[int]) -> list[tuple[int, UnitKL]]:
    """Returns the answer KL without each unit, for those batches of this rank that have answers and are asked for.

    Args:
        answers: the dense model's answers on this rank's batches.
        numbers: the numbers of the batches that are asked for.
    """
    return [
        (number, UnitKL(_unit_kl(answers.model, inputs, dense), len(dense)))
        for number, inputs, dense in answers.dense_answers()
        if number in numbers
    ]


def _unit_kl(model: PreTrainedModel, inputs: dict, dense_logits: Tensor) -> list[list[float]]:
    """Returns [L][U], given a batch's inputs and the dense model's logits [A, vocabulary]."""
    decoder, config = model.model.language_model, model.config.text_config
    plan, units = VisualPlan.dense(config.num_hidden_layers), range(config.num_key_value_heads)
    sums = []
    with model.use_plan(plan):
        (text, visual), first = arguments_of(decoder.layers[0], model, inputs)
        streams, shared = _Streams(text, visual), first["shared"]
        for layer in range(len(plan)):
            without = []
            for unit in units:
                others = tuple(other for other in units if other != unit)
                with model.use_plan(plan.replace(layer, heads=others)):
                    last = _run(model, streams, layer, len(plan), shared)
                states = join_streams(decoder.norm(last.text), shared.text, None, None, inputs["logits_mask"].shape[1])
                without.append(kl_sum(dense_logits, model.lm_head(states[inputs["logits_mask"]])))
            sums.append(torch.stack(without).tolist())
            streams = _run(model, streams, layer, layer + 1, shared)
    return sums


def _run(model: PreTrainedModel, streams: _Streams, begin: int, end: int, shared: SharedInputs) -> _Streams:
    """Returns the streams after the layers from `begin` to before `end`, under the plan in force.

    The plan must carry all visual tokens, so that the layers share what those of the dense plan share.
    """
    decoder = model.model.language_model
    in_force = decoder.in_force
    for index in range(begin, end):
        text, visual, _ = decoder.layers[index](
            *streams,
            live=in_force.live[index],
            units=in_force.units[index],
            neurons=in_force.neurons[index],
            shared=shared,
        )
        streams = _Streams(text, visual)
    return streams
