"""Distillation losses: pure functions that return sums over tokens; the caller divides once by the tokens it counted.

Logits are rows already chosen (the positions whose next label is supervised). Every divergence is computed in fp32, is
0 on identical logits, and is scaled by temperature^2 so that its gradient keeps its size as the temperature changes
(Hinton et al., arXiv 1503.02531). The generalized Jensen-Shannon divergence is that of arXiv 2306.13649, eq. 1.

N rows, V vocab, D hidden_size.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from training.recipe.distillation import DistillationSettings

# Rows whose fp32 log-probabilities are alive together: at a vocabulary of 32,000, 128 MB per tensor.
CHUNK_ROWS = 1024


class Rows(NamedTuple):
    """What a model gives at the supervised positions: logits [N, V], last hidden state [N, D]."""

    logits: torch.Tensor
    hidden: torch.Tensor | None
    """None in answers that were kept (training/distillation/kept_answers.py)."""


def weighted_token_sums(
    settings: DistillationSettings, labels: torch.Tensor, student: Rows, teacher: Rows | None
) -> Iterator[tuple[str, float, torch.Tensor]]:
    """Name, weight and token sum of each loss whose weight is not 0.

    Args:
        labels: [N] int64, the next token of each row.
        student, teacher: the same N rows of both; the teacher may be None where no loss needs it.
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
    """-sum log p_student(label). Logits [N, V], labels [N] int64 (no ignored ones). Returns a scalar, fp32."""
    return _sum_chunks(
        lambda logits, targets: F.cross_entropy(logits.float(), targets, reduction="sum"), student_logits, labels
    )


def forward_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, *, distill_temperature: float
) -> torch.Tensor:
    """temperature^2 * sum KL(teacher || student). Logits [N, V]. Returns a scalar, fp32."""
    return _divergence(_kl_teacher_student, student_logits, teacher_logits, distill_temperature)


def reverse_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, *, distill_temperature: float
) -> torch.Tensor:
    """temperature^2 * sum KL(student || teacher). Logits [N, V]. Returns a scalar, fp32."""
    return _divergence(
        lambda student, teacher: _kl_teacher_student(teacher, student),
        student_logits,
        teacher_logits,
        distill_temperature,
    )


def jensen_shannon(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, *, jsd_beta: float, distill_temperature: float
) -> torch.Tensor:
    """temperature^2 * sum [beta KL(P || M) + (1 - beta) KL(Q || M)], M = beta P + (1 - beta) Q, P teacher, Q student."""
    weights = torch.tensor([jsd_beta, 1 - jsd_beta], device=student_logits.device).log()

    def divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        mixture = torch.logsumexp(torch.stack([teacher, student], dim=-1) + weights, dim=-1)
        return jsd_beta * _kl_teacher_student(mixture, teacher) + (1 - jsd_beta) * _kl_teacher_student(mixture, student)

    return _divergence(divergence, student_logits, teacher_logits, distill_temperature)


def hidden_cosine(student_hidden: torch.Tensor, teacher_hidden: torch.Tensor) -> torch.Tensor:
    """sum (1 - cosine) of hidden states [N, D], text rows only. Returns a scalar, fp32."""
    return (1 - F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)).sum()


def _kl_teacher_student(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """sum KL(teacher || student) of log-probabilities [N, V]."""
    return F.kl_div(student, teacher, reduction="sum", log_target=True)


def _divergence(
    divergence: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    distill_temperature: float,
) -> torch.Tensor:
    def on_chunk(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        scaled = ((logits.float() / distill_temperature).log_softmax(dim=-1) for logits in (student, teacher))
        return divergence(*scaled) * distill_temperature**2

    return _sum_chunks(on_chunk, student_logits, teacher_logits)


def _sum_chunks(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], first: torch.Tensor, second: torch.Tensor
) -> torch.Tensor:
    """Sum of `function` over chunks of rows. A chunk's fp32 tensors live while it is worked on, forward and backward."""
    if len(first) <= CHUNK_ROWS:
        return function(first, second)
    chunks = zip(first.split(CHUNK_ROWS), second.split(CHUNK_ROWS), strict=True)
    return torch.stack([checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks]).sum()
