"""What student and teacher compute at the supervised positions, which are those whose next token belongs to an answer.

The teacher's logits are never held whole: they are computed for some positions when they are asked for.

N supervised positions, V vocab, D hidden_size.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class StudentOutputs(NamedTuple):
    """What the student computes at the supervised positions."""

    logits: torch.Tensor
    """[N, V]. `token_losses` writes over them if they require a gradient."""
    hidden: torch.Tensor
    """[N, D], the last hidden states."""


class TeacherOutputs(NamedTuple):
    """What the teacher says at the supervised positions."""

    logits: Callable[[slice], torch.Tensor]
    """Gives the logits [n, V] of some of the positions."""
    hidden: torch.Tensor | None
    """[N, D], the last hidden states; None for stored answers (training/distillation/teacher_answers.py)."""


def student_outputs(forward: Callable[..., Any], bare_model: nn.Module, inputs: dict) -> StudentOutputs:
    """Runs the forward pass and returns logits and hidden states at the supervised positions.

    Args:
        forward: the forward of the model, perhaps wrapped by DDP or DeepSpeed.
        bare_model: the model without such a wrapper. Its lm_head is called for the supervised positions only.
        inputs: arguments of the forward, with `logits_mask`.
    """
    hidden: list[torch.Tensor] = []
    head = bare_model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, arguments: hidden.append(arguments[0]))
    try:
        logits = forward(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    return StudentOutputs(logits, *hidden)


def teacher_outputs(model: nn.Module, inputs: dict) -> TeacherOutputs:
    """Runs the teacher's forward pass. Its logits are to be asked for in the context of `gathered`.

    Args:
        model: the teacher. In its forward the head is called without any position.
        inputs: arguments of the forward, with `logits_mask`.
    """
    hidden: list[torch.Tensor] = []

    def keep(module: nn.Module, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        hidden.append(arguments[0])
        return (arguments[0][:0],)

    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(keep)
    try:
        model(**inputs, use_cache=False)
    finally:
        hook.remove()
    return TeacherOutputs(partial(_logits, head, *hidden), *hidden)


@torch.no_grad()
def _logits(head: nn.Linear, hidden: torch.Tensor, rows: slice) -> torch.Tensor:
    """Returns the head's logits [n, V] of n positions."""
    return F.linear(hidden[rows], head.weight, head.bias)


def gathered(head: nn.Module) -> AbstractContextManager:
    """Returns a context in which the head's weights are whole, also where ZeRO-3 has divided them.

    Ranks have different numbers of positions, so of chunks, and all of them have to gather equally often.
    """
    weights = list(head.parameters())
    if not hasattr(weights[0], "ds_id"):
        return nullcontext()
    import deepspeed  # slow, and only ever needed under ZeRO-3

    return deepspeed.zero.GatheredParameters(weights)
