"""Distillation losses. Each is a sum over tokens, and the caller divides it by the number of tokens.

Logits are given only for supervised positions, which are those whose next token belongs to an answer. Every divergence
is computed in fp32 and is 0 for identical logits. It is multiplied by temperature^2, so that its gradient keeps its
size when the temperature changes (arXiv 1503.02531, section 2).

N supervised positions, V vocab, D hidden_size.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from training.recipe.distillation import DistillationSettings

CHUNK_ROWS = 1024
"""Positions whose fp32 log-probabilities are in memory together. With 32,000 tokens in the vocabulary, that is 128
MB."""


class SupervisedOutputs(NamedTuple):
    """What a model computes at the supervised positions."""

    logits: torch.Tensor
    """[N, V]."""
    hidden: torch.Tensor | None
    """[N, D], the last hidden states; None for stored answers (training/distillation/teacher_answers.py)."""


def weighted_token_sums(
    settings: DistillationSettings, labels: torch.Tensor, student: SupervisedOutputs, teacher: SupervisedOutputs | None
) -> Iterator[tuple[str, float, torch.Tensor]]:
    """Yields name, weight and token sum (fp32 scalar) of each loss whose weight is not 0.

    Args:
        settings: weights of the losses.
        labels: [N] int64, the next token at each position.
        student: the student's outputs at these positions.
        teacher: the teacher's outputs at the same positions; None if no loss needs it.
    """
    temperature = settings.distill_temperature
    if settings.cross_entropy_weight:
        yield "cross_entropy", settings.cross_entropy_weight, cross_entropy(student.logits, labels)
    if settings.forward_kl_weight:
        token_sum = forward_kl(student.logits, teacher.logits, distill_temperature=temperature)
        yield "forward_kl", settings.forward_kl_weight, token_sum
    if settings.reverse_kl_weight:
        token_sum = reverse_kl(student.logits, teacher.logits, distill_temperature=temperature)
        yield "reverse_kl", settings.reverse_kl_weight, token_sum
    if settings.jsd_weight:
        token_sum = jensen_shannon(
            student.logits, teacher.logits, jsd_beta=settings.jsd_beta, distill_temperature=temperature
        )
        yield "jensen_shannon", settings.jsd_weight, token_sum
    if settings.hidden_cosine_weight:
        yield "hidden_cosine", settings.hidden_cosine_weight, hidden_cosine(student.hidden, teacher.hidden)


def cross_entropy(student_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns -sum log p_student(label), an fp32 scalar.

    Args:
        student_logits: [N, V].
        labels: [N] int64. None of them is ignored.
    """
    return _sum_chunks(
        lambda logits, targets: F.cross_entropy(logits.float(), targets, reduction="sum"), student_logits, labels
    )


def forward_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, *, distill_temperature: float
) -> torch.Tensor:
    """Returns temperature^2 * sum KL(teacher || student), an fp32 scalar. Logits are [N, V]."""
    return _divergence(_kl_teacher_student, student_logits, teacher_logits, distill_temperature)


def reverse_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, *, distill_temperature: float
) -> torch.Tensor:
    """Returns temperature^2 * sum KL(student || teacher), an fp32 scalar. Logits are [N, V]."""
    return _divergence(
        lambda student, teacher: _kl_teacher_student(teacher, student),
        student_logits,
        teacher_logits,
        distill_temperature,
    )


def jensen_shannon(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, *, jsd_beta: float, distill_temperature: float
) -> torch.Tensor:
    """Returns temperature^2 * sum [beta KL(P || M) + (1 - beta) KL(Q || M)] with M = beta P + (1 - beta) Q.

    P is the teacher's distribution and Q the student's. It is the generalized Jensen-Shannon divergence of arXiv
    2306.13649, equation 1.

    Args:
        student_logits: [N, V].
        teacher_logits: [N, V].
        jsd_beta: beta, between 0 and 1.
        distill_temperature: logits are divided by it.

    Returns:
        An fp32 scalar.
    """

    def divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        mixture = torch.logaddexp(teacher + math.log(jsd_beta), student + math.log1p(-jsd_beta))
        return jsd_beta * _kl_teacher_student(mixture, teacher) + (1 - jsd_beta) * _kl_teacher_student(mixture, student)

    return _divergence(divergence, student_logits, teacher_logits, distill_temperature)


def hidden_cosine(student_hidden: torch.Tensor, teacher_hidden: torch.Tensor) -> torch.Tensor:
    """Returns the sum of 1 - cosine similarity over positions, an fp32 scalar. Hidden states are [N, D]."""
    return (1 - F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)).sum()


def _kl_teacher_student(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Returns sum KL(teacher || student) from log-probabilities [N, V]."""
    return F.kl_div(student, teacher, reduction="sum", log_target=True)


def _divergence(
    divergence: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    distill_temperature: float,
) -> torch.Tensor:
    """Returns temperature^2 * `divergence` of the two models' log-probabilities [N, V], summed over positions."""

    def on_chunk(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        scaled = ((logits.float() / distill_temperature).log_softmax(dim=-1) for logits in (student, teacher))
        return divergence(*scaled) * distill_temperature**2

    return _sum_chunks(on_chunk, student_logits, teacher_logits)


def _sum_chunks(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], first: torch.Tensor, second: torch.Tensor
) -> torch.Tensor:
    """Returns the sum of `function` over chunks of positions.

    The fp32 tensors of one chunk at a time are in memory, in the forward and in the backward pass.
    """
    if len(first) <= CHUNK_ROWS:
        return function(first, second)
    chunks = zip(first.split(CHUNK_ROWS), second.split(CHUNK_ROWS), strict=True)
    return torch.stack([checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks]).sum()
