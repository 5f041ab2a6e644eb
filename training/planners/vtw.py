"""VTW's rule (arXiv 2405.05803): all visual tokens are withdrawn at one layer, the first at which answers barely change.

What changes is measured as KL, in fp32, at every answer token; `at: prompt` is the released code's measure, the reverse KL at
the last token before an answer. The released code takes the first layer within its tolerance, on task data that nothing
checks; here all later layers must be within it too, and some samples are held out.

The text's states below a withdrawal are those of the dense model. One dense pass over a batch keeps them, and for each layer
only the text rows above it are run again: L layers on all rows and L (L - 1) / 2 on text alone. A forward per layer would run
L (L - 1) / 2 more on all rows, ten times as long each where a prompt is nine tenths image.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedModel

from data.conversations import IGNORE_INDEX
from modeling.user_error import UserError
from modeling.visual_layout import join_streams
from modeling.visual_plan import VisualPlan
from training.measure.answer_kl import answer_inputs
from training.planners.tools.budget import Budget, SolvedSettings, largest_within
from training.run import write_json

OF_THE_KL = ("at", "for_all_later", "hold_out")
"""Settings that mean nothing where a budget decides."""


class VtwSettings(SolvedSettings):
    """Either a budget or `tolerance`. With a budget: the last layer at which a withdrawal fits; nothing is measured."""

    solves = "tolerance"
    planner: Literal["vtw"]
    tolerance: float | None = Field(default=None, ge=0)
    """Largest mean KL, in nats. Published, for `at: prompt`: 0.003 for LLaVA-1.5-7B, 0.0005 for 13B, 0.0001 for NeXT-7B."""
    at: Literal["answers", "prompt"] = "answers"
    """answers: KL(dense || withdrawn) at every token that predicts an answer's; prompt: KL(withdrawn || dense) at the last
    token before each answer."""
    for_all_later: bool = True
    """A withdrawal at any later layer must be within the tolerance too; false: the released code's rule."""
    hold_out: float = Field(default=0.25, ge=0, lt=1)
    """Share of the calibration samples that have no say: the KL on them tells what to expect of new data."""

    @model_validator(mode="after")
    def _measured_or_not(self) -> "VtwSettings":
        changed = [name for name in OF_THE_KL if getattr(self, name) != type(self).model_fields[name].default]
        if self.budget is not None and changed:
            raise ValueError(f"a budget decides without measuring: {', '.join(changed)} go with tolerance")
        return self


def plan_vtw(
    model: PreTrainedModel, batches: Sequence[dict], settings: VtwSettings, curve_path: Path | None = None
) -> VisualPlan:
    """The plan of the first layer within the tolerance, the dense one where no layer is.

    Args:
        curve_path: where the `withdrawal_curve` is left as JSON.

    Raises:
        UserError: one side of `hold_out` is left without an answer.
    """
    curve = withdrawal_curve(model, batches, settings.at, settings.hold_out)
    if curve_path is not None:
        write_json(curve_path, curve)
    chosen = _first_within(curve, settings.tolerance, settings.for_all_later)
    layer, num_layers, held = chosen["layer"], len(curve), chosen["kl_hold_out"]
    if layer == num_layers:
        tqdm.write("vtw plan: dense, no withdrawal is within the tolerance")
    else:
        on_others = "" if held is None else f", {held:.3g} on held-out samples"
        tqdm.write(f"vtw plan: text alone from layer {layer} of {num_layers}, KL {chosen['kl']:.3g}{on_others}")
    return _withdrawn(layer, num_layers)


def withdrawal_within(config: PreTrainedConfig, budget: Budget) -> VisualPlan:
    """The latest withdrawal within the budget. Raises UserError where none is after the first layer."""
    num_layers = config.text_config.num_hidden_layers
    return largest_within(
        budget,
        config,
        range(1, num_layers + 1),
        lambda layer: _withdrawn(layer, num_layers),
        "all tokens in the first layer alone",
    )


@torch.no_grad()
def withdrawal_curve(
    model: PreTrainedModel, batches: Sequence[dict], at: Literal["answers", "prompt"], hold_out: float
) -> list[dict[str, int | float | None]]:
    """How far withdrawing the visual tokens at each layer moves the answers.

    Args:
        model: any plan may be in force, it is restored; put in eval mode.
        batches: dicts of `data.collator.Collator`; text-only samples are left out.
        at, hold_out: as in VtwSettings; samples are held out at even distances.

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
        for layer, (_, how) in zip(decoder.layers[first:], calls[first:], strict=True):
            text, _, _ = layer(text, None, **how)
        states = join_streams(decoder.norm(text), shared.text, None, None, rows.shape[1])
        withdrawn = model.lm_head(states[rows]).float().log_softmax(-1)
        yield first, _kl(withdrawn, dense) if reverse else _kl(dense, withdrawn)


def _kl(of: Tensor, against: Tensor) -> Tensor:
    """KL(of || against) of log-probabilities [A, V] -> [A]."""
    return F.kl_div(against, of, reduction="none", log_target=True).sum(-1)


def _first_within(curve: list[dict], tolerance: float, for_all_later: bool) -> dict:
    """The first point within the tolerance; the last one, without withdrawal, always is."""
    within = [point["kl"] <= tolerance for point in curve]
    return next(
        point
        for index, point in enumerate(curve)
        if all(within[index:] if for_all_later else within[index : index + 1])
    )


def _withdrawn(layer: int, num_layers: int) -> VisualPlan:
    """The plan without visual tokens from `layer` on; at `num_layers` the dense one."""
    dense = VisualPlan.dense(num_layers)
    return dense if layer == num_layers else dense.replace(layer, tokens=0.0)
