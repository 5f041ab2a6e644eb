"""How far withdrawing all visual tokens at each layer moves the answers.

The text's states below a withdrawal are those of the dense model. One dense pass over a batch keeps them. Above each
layer only the text rows are run again. That is L layers on all rows and L (L - 1) / 2 on text alone. A forward per layer
would run L (L - 1) / 2 more layers on all rows, each ten times as long where a prompt is nine tenths image.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from data.conversations import IGNORE_INDEX
from modeling.user_error import UserError
from modeling.visual_layout import join_streams
from modeling.visual_plan import VisualPlan
from training.measure.answer_kl import answer_inputs


@torch.no_grad()
def withdrawal_curve(
    model: PreTrainedModel, batches: Sequence[dict], at: Literal["answers", "prompt"], hold_out: float
) -> list[dict[str, int | float | None]]:
    """How far withdrawing the visual tokens at each layer moves the answers.

    Args:
        model: any plan may be in force, it is restored; put in eval mode.
        batches: dicts of `data.collator.Collator`; text-only samples are left out.
        at, hold_out: as in `VtwPlanner`. Samples are held out at even distances.

    Returns:
        For `layer` 1 to L, the first without visual tokens (at L none is): `kl`, the mean over tokens in nats, and
        `kl_hold_out`, that of the samples held out (None where there are none).

    Raises:
        UserError: no sample with an image has an answer, or one side of `hold_out` has none.
    """
    num_layers = model.config.text_config.num_hidden_layers
    sums, counts, num_samples = torch.zeros(num_layers, 2, dtype=torch.double), torch.zeros(2), 0
    for inputs in tqdm(answer_inputs(model.eval(), batches), desc="withdrawing", unit="batch"):
        rows = inputs["logits_mask"]
        if at == "prompt":
            rows = rows & (inputs["labels"] == IGNORE_INDEX)
        sample = num_samples + rows.nonzero()[:, 0].cpu()  # [A]: of each logits row, its sample's number
        held = ((sample + 1) * hold_out).floor().long() - (
            sample * hold_out
        ).floor().long()  # [A]: 0, or 1 where held out
        num_samples += len(rows)
        counts += held.bincount(minlength=2)
        for layer, divergence in _divergences(model, inputs | {"logits_mask": rows}, at == "prompt"):
            sums[layer - 1].index_add_(0, held, divergence.double().cpu())
    if counts[0] == 0 or (hold_out > 0 and counts[1] == 0):
        raise UserError(f"plan.hold_out: got {hold_out:g} of {num_samples} samples, allowed: answers on both sides")
    return [
        {"layer": layer, "kl": chosen, "kl_hold_out": held if hold_out > 0 else None}
        for layer, (chosen, held) in enumerate((sums / counts).tolist(), start=1)
    ]


def _divergences(model: PreTrainedModel, inputs: dict, reverse: bool) -> Iterator[tuple[int, Tensor]]:
    """Yields layer and KL [A] of each withdrawal from layer 1 on, of the rows of `logits_mask`."""
    decoder, rows = model.model.language_model, inputs["logits_mask"]
    calls = []  # per layer, its text rows [B, T, D] and how it is called
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


def _kl(of: Tensor, against: Tensor) -> Tensor:
    """KL(of || against) of log-probabilities [A, V] -> [A]."""
    return F.kl_div(against, of, reduction="none", log_target=True).sum(-1)
