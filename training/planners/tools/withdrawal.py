"""Measures how much the answers change if all visual tokens are withdrawn, for each layer at which that can be done.

Below a withdrawal, the text's states are those of the dense model. One dense pass over a batch keeps them. Above each
withdrawal, only the text rows are run again. With L layers, this runs L layers on all rows and L (L - 1) / 2 on text
alone. A forward pass per withdrawal would run L (L - 1) / 2 more layers on all rows. Each of these takes about ten
times as long if nine tenths of the prompt are a picture.

Shape legend: B batch, T tokens, D hidden size, V vocabulary, A rows of a batch whose logits are compared.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from data.conversations import IGNORE_INDEX
from modeling.user_error import UserError
from modeling.visual_layout import join_streams
from modeling.visual_plan import VisualPlan
from training.measure.answer_kl import answer_inputs, refuse_no_answers
from training.progress import Progress


class Withdrawals(NamedTuple):
    """How much the answers of a batch's samples change, fp64 on the CPU."""

    kl_sums: Tensor
    """[samples, L] KL in nats, summed over a sample's tokens, of the withdrawal at each layer from 1 on."""
    num_tokens: Tensor
    """[samples] tokens of each sample."""


@torch.no_grad()
def own_withdrawals(
    model: PreTrainedModel, batches: Sequence[tuple[int, dict]], at: Literal["answers", "prompt"]
) -> list[tuple[int, Withdrawals]]:
    """Returns what withdrawing costs on each of this rank's batches that has answers, with the batch's number.

    Args:
        model: a sparse model with the dense weights. Any plan may be in force, and it is restored. The model is put in
            eval mode.
        batches: numbers of batches, and dicts that `data.collator.Collator` returns. Text-only samples are left out.
        at: as in `VtwPlanner`.
    """
    num_layers, found = model.config.text_config.num_hidden_layers, []
    for number, batch in Progress(batches, desc="withdrawing", unit="batch"):
        inputs = answer_inputs(model.eval(), batch)
        if inputs is None:
            continue
        rows = inputs["logits_mask"]
        if at == "prompt":
            rows = rows & (inputs["labels"] == IGNORE_INDEX)
        sample = rows.nonzero()[:, 0].cpu()  # [A]: the number of each logits row's sample
        sums = torch.zeros(len(rows), num_layers, dtype=torch.double)
        for layer, divergence in _divergences(model, inputs | {"logits_mask": rows}, at == "prompt"):
            sums[:, layer - 1].index_add_(0, sample, divergence.double().cpu())
        found.append((number, Withdrawals(sums, rows.sum(1).cpu())))
    return found


def withdrawal_curve(batches: Sequence[Withdrawals], hold_out: float) -> list[dict[str, int | float | None]]:
    """Returns how much withdrawing the visual tokens at each layer changes the answers, one dict per layer.

    A dict has three keys. `layer` is the first layer without visual tokens. It runs from 1 to L, and at L nothing is
    withdrawn. `kl` is the mean KL over tokens, in nats. `kl_hold_out` is the same over the samples that are held out.
    It is None if there are none.

    Args:
        batches: what was measured on each batch, in the order of the data.
        hold_out: as in `VtwPlanner`. Samples are held out at even distances.

    Raises:
        UserError: no sample with an image has an answer, or one side of the split by `hold_out` has none.
    """
    refuse_no_answers(len(batches))
    sums, num_tokens = torch.cat([batch.kl_sums for batch in batches]), torch.cat([b.num_tokens for b in batches])
    sample = torch.arange(len(sums), dtype=torch.double)
    held = ((sample + 1) * hold_out).floor() - (sample * hold_out).floor() == 1  # [samples]
    counts = [int(num_tokens[chosen].sum()) for chosen in (~held, held)]
    if counts[0] == 0 or (hold_out > 0 and counts[1] == 0):
        raise UserError(f"plan.hold_out: got {hold_out:g} of {len(sums)} samples, allowed: answers on both sides")
    kl = sums[~held].sum(0) / counts[0]  # [L]
    kl_hold_out = (sums[held].sum(0) / counts[1]).tolist() if hold_out > 0 else [None] * len(kl)
    return [
        {"layer": layer, "kl": chosen, "kl_hold_out": other}
        for layer, (chosen, other) in enumerate(zip(kl.tolist(), kl_hold_out, strict=True), start=1)
    ]


def _divergences(model: PreTrainedModel, inputs: dict, reverse: bool) -> Iterator[tuple[int, Tensor]]:
    """Yields each layer from 1 on and the KL [A] of the withdrawal at it, at the rows of `logits_mask`.

    Args:
        reverse: whether KL(withdrawn || dense) is measured instead of KL(dense || withdrawn).
    """
    decoder, rows = model.model.language_model, inputs["logits_mask"]
    calls = []  # per layer, its text rows [B, T, D] and its other arguments
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args[0], kwargs)), with_kwargs=True)
        for layer in decoder.layers
    ]
    try:
        with model.use_plan(VisualPlan.dense(len(hooks))):
            dense = model(**inputs, use_cache=False).logits.float().log_softmax(-1)
    finally:
        for hook in hooks:
            hook.remove()
    shared = calls[0][1]["shared"]
    for first in range(1, len(calls)):
        text = calls[first][0]
        for layer, (_, arguments) in zip(decoder.layers[first:], calls[first:], strict=True):
            text, _, _ = layer(text, None, **arguments)
        states = join_streams(decoder.norm(text), shared.text, None, None, rows.shape[1])
        withdrawn = model.lm_head(states[rows]).float().log_softmax(-1)
        yield first, _kl(withdrawn, dense) if reverse else _kl(dense, withdrawn)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Returns KL(p || q) in nats, given log-probabilities: [A, V], [A, V] -> [A]."""
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
