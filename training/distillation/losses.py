"""Distillation losses. Each is a sum over tokens, and the caller divides it by the number of tokens.

Logits are given only for supervised positions, which are those whose next token belongs to an answer. Every divergence
is computed in fp32 and is 0 for identical logits. It is multiplied by temperature^2, so that its gradient keeps its
size when the temperature changes (arXiv 1503.02531, section 2).

One tensor [N, V] is held, the student's logits. Positions are taken in chunks: the teacher's logits are computed for a
chunk alone, and the gradient of the losses is computed at once and written over the student's logits.

N supervised positions, V vocab, D hidden_size, n positions of a chunk.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from training.distillation.outputs import StudentOutputs, TeacherOutputs
from training.recipe.distillation import DistillationSettings

CHUNK_VALUES = 2**24
"""Logits of a chunk at most. In fp32 they are 64 MiB, and some seven such tensors are in memory together."""


class TokenLosses(NamedTuple):
    """The losses of a batch."""

    total: torch.Tensor
    """Their weighted sum, an fp32 scalar. It has a gradient, for one backward pass."""
    sums: dict[str, torch.Tensor]
    """Each loss whose weight is not 0, an fp32 scalar without its weight and without a gradient."""


def token_losses(
    settings: DistillationSettings, labels: torch.Tensor, student: StudentOutputs, teacher: TeacherOutputs | None
) -> TokenLosses:
    """Returns the losses of the settings, summed over tokens.

    Args:
        settings: weights of the losses.
        labels: [N] int64, the next token at each position.
        student: the student's outputs at these positions.
        teacher: the teacher's outputs at the same positions; None if no loss needs it.
    """
    weights = _weights_of_logit_losses(settings)
    total, sums = _LogitLosses.apply(student.logits, labels, settings, weights, teacher)
    losses = dict(zip(weights, sums, strict=True))
    if settings.hidden_cosine_weight:
        cosine = hidden_cosine(student.hidden, teacher.hidden)
        losses["hidden_cosine"] = cosine.detach()
        total = total + settings.hidden_cosine_weight * cosine
    return TokenLosses(total, losses)


def chunks(logits: torch.Tensor) -> Iterator[slice]:
    """Yields the chunks of positions of logits [N, V]."""
    size = max(1, CHUNK_VALUES // logits.shape[1])
    return (slice(begin, begin + size) for begin in range(0, len(logits), size))


class _LogitLosses(torch.autograd.Function):
    """The losses that are computed from logits. The forward also computes their gradient, which the backward scales."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        labels: torch.Tensor,
        settings: DistillationSettings,
        weights: dict[str, float],
        teacher: TeacherOutputs | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the weighted sum of the losses, and each loss [losses] in the order of `weights`."""
        differentiable = ctx.needs_input_grad[0]
        sums = torch.zeros(len(weights), device=logits.device)
        weighed = sums.new_tensor(list(weights.values()))
        for rows in chunks(logits) if weights else ():
            answers = teacher.logits(rows) if settings.needs_teacher_logits else None
            with torch.set_grad_enabled(differentiable):
                chunk = logits[rows].detach().requires_grad_(differentiable)
                losses = torch.stack([_logit_loss(name, settings, labels[rows], chunk, answers) for name in weights])
                weighted = losses @ weighed
            if differentiable:
                logits[rows] = torch.autograd.grad(weighted, chunk)[0]
            sums += losses.detach()
        ctx.gradient = logits.detach() if weights else torch.zeros_like(logits)
        ctx.mark_non_differentiable(sums)
        return sums @ weighed, sums

    @staticmethod
    def backward(ctx: Any, total: torch.Tensor, _: None) -> tuple[torch.Tensor, None, None, None, None]:
        return ctx.gradient.mul_(total), None, None, None, None


def _weights_of_logit_losses(settings: DistillationSettings) -> dict[str, float]:
    """Returns the losses that are computed from logits, and their weights, which are not 0."""
    weights = {
        "cross_entropy": settings.cross_entropy_weight,
        "forward_kl": settings.forward_kl_weight,
        "reverse_kl": settings.reverse_kl_weight,
        "jensen_shannon": settings.jsd_weight,
    }
    return {name: weight for name, weight in weights.items() if weight}


def _logit_loss(
    name: str,
    settings: DistillationSettings,
    labels: torch.Tensor,
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor | None,
) -> torch.Tensor:
    """Returns one of the losses, an fp32 scalar, of logits [n, V] and labels [n]."""
    if name == "cross_entropy":
        return cross_entropy(student_logits, labels)
    temperature = settings.distill_temperature
    if name == "forward_kl":
        return forward_kl(student_logits, teacher_logits, distill_temperature=temperature)
    if name == "reverse_kl":
        return reverse_kl(student_logits, teacher_logits, distill_temperature=temperature)
    return jensen_shannon(student_logits, teacher_logits, jsd_beta=settings.jsd_beta, distill_temperature=temperature)


def cross_entropy(student_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns -sum log p_student(label), an fp32 scalar.

    Args:
        student_logits: [n, V].
        labels: [n] int64. None of them is ignored.
    """
    return F.cross_entropy(student_logits.float(), labels, reduction="sum")


def forward_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, *, distill_temperature: float
) -> torch.Tensor:
    """Returns temperature^2 * sum KL(teacher || student), an fp32 scalar. Logits are [n, V]."""
    student, teacher = _log_probabilities(student_logits, teacher_logits, distill_temperature)
    return _kl_teacher_student(student, teacher) * distill_temperature**2


def reverse_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, *, distill_temperature: float
) -> torch.Tensor:
    """Returns temperature^2 * sum KL(student || teacher), an fp32 scalar. Logits are [n, V]."""
    student, teacher = _log_probabilities(student_logits, teacher_logits, distill_temperature)
    return _kl_teacher_student(teacher, student) * distill_temperature**2


def jensen_shannon(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, *, jsd_beta: float, distill_temperature: float
) -> torch.Tensor:
    """Returns temperature^2 * sum [beta KL(P || M) + (1 - beta) KL(Q || M)] with M = beta P + (1 - beta) Q.

    P is the teacher's distribution and Q the student's. It is the generalized Jensen-Shannon divergence of arXiv
    2306.13649, equation 1.

    Args:
        student_logits: [n, V].
        teacher_logits: [n, V].
        jsd_beta: beta, between 0 and 1.
        distill_temperature: logits are divided by it.

    Returns:
        An fp32 scalar.
    """
    student, teacher = _log_probabilities(student_logits, teacher_logits, distill_temperature)
    mixture = torch.logaddexp(teacher + math.log(jsd_beta), student + math.log1p(-jsd_beta))
    divergence = jsd_beta * _kl_teacher_student(mixture, teacher) + (1 - jsd_beta) * _kl_teacher_student(
        mixture, student
    )
    return divergence * distill_temperature**2


def hidden_cosine(student_hidden: torch.Tensor, teacher_hidden: torch.Tensor) -> torch.Tensor:
    """Returns the sum of 1 - cosine similarity over positions, an fp32 scalar. Hidden states are [N, D]."""
    return (1 - F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)).sum()


def _log_probabilities(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns both models' log-probabilities [n, V] at a temperature, in fp32."""
    student, teacher = (
        (logits.float() / temperature).log_softmax(dim=-1) for logits in (student_logits, teacher_logits)
    )
    return student, teacher


def _kl_teacher_student(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Returns sum KL(teacher || student) from log-probabilities [n, V]."""
    return F.kl_div(student, teacher, reduction="sum", log_target=True)
