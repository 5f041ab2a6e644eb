"""Distillation losses against their definitions."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from training.distillation import losses
from training.distillation.losses import (
    SupervisedOutputs,
    cross_entropy,
    forward_kl,
    hidden_cosine,
    jensen_shannon,
    reverse_kl,
    weighted_token_sums,
)
from training.recipe.distillation import DistillationSettings

N, V = 12, 7


@pytest.fixture
def student() -> torch.Tensor:
    return torch.randn(N, V, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def teacher(student) -> torch.Tensor:
    # Far enough from the student that every divergence is well above float noise.
    return student + torch.randn(N, V, generator=torch.Generator().manual_seed(1))


def divergences(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> dict[str, torch.Tensor]:
    return {
        "forward": forward_kl(student, teacher, distill_temperature=temperature),
        "reverse": reverse_kl(student, teacher, distill_temperature=temperature),
        "jsd": jensen_shannon(student, teacher, jsd_beta=0.3, distill_temperature=temperature),
    }


def test_identical_logits_cost_nothing(student, teacher):
    for name, value in divergences(student, student.clone(), 2.0).items():
        assert abs(value) < 1e-5, name
    for name, value in divergences(student, teacher, 2.0).items():
        assert value > 0.1, name
    hidden = torch.randn(N, 5)
    assert abs(hidden_cosine(hidden, 3 * hidden)) < 1e-5
    assert torch.allclose(hidden_cosine(hidden, -hidden), torch.tensor(2.0 * N))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergences_are_their_definitions(student, teacher, temperature):
    q, p = (F.softmax(logits / temperature, dim=-1) for logits in (student, teacher))
    mixture = 0.3 * p + 0.7 * q

    def kl(a, b):
        return (a * (a.log() - b.log())).sum()

    expected = {
        "forward": kl(p, q),
        "reverse": kl(q, p),
        "jsd": 0.3 * kl(p, mixture) + 0.7 * kl(q, mixture),
    }
    for name, value in divergences(student, teacher, temperature).items():
        torch.testing.assert_close(value, expected[name] * temperature**2)


def test_sums_over_tokens_are_additive(student, teacher):
    """A sum, not a mean: any cut of the rows gives the same total."""
    labels = torch.arange(N) % V
    for function in (
        lambda rows: cross_entropy(student[rows], labels[rows]),
        lambda rows: forward_kl(student[rows], teacher[rows], distill_temperature=1.0),
    ):
        torch.testing.assert_close(function(slice(0, 5)) + function(slice(5, N)), function(slice(0, N)))
        assert function(slice(0, 0)) == 0


def test_chunks_change_neither_value_nor_gradient(student, teacher, monkeypatch):
    def value_and_gradient():
        logits = student.clone().requires_grad_()
        value = forward_kl(logits, teacher, distill_temperature=1.5) + cross_entropy(logits, torch.arange(N) % V)
        value.backward()
        return value.detach(), logits.grad

    whole = value_and_gradient()
    monkeypatch.setattr(losses, "CHUNK_ROWS", 5)
    torch.testing.assert_close(value_and_gradient(), whole)


def test_half_precision_logits_are_computed_in_fp32(student, teacher):
    value = forward_kl(student.bfloat16(), teacher.bfloat16(), distill_temperature=1.0)
    assert value.dtype == torch.float32
    expected = forward_kl(student.bfloat16().float(), teacher.bfloat16().float(), distill_temperature=1.0)
    torch.testing.assert_close(value, expected)


def test_settings_choose_and_weigh_the_losses(student, teacher):
    settings = DistillationSettings(cross_entropy_weight=0.5, forward_kl_weight=0, jsd_weight=2, hidden_cosine_weight=1)
    outputs = SupervisedOutputs(student, student), SupervisedOutputs(teacher, teacher)
    found = list(weighted_token_sums(settings, torch.arange(N) % V, *outputs))
    assert [(name, weight) for name, weight, _ in found] == [
        ("cross_entropy", 0.5),
        ("jensen_shannon", 2),
        ("hidden_cosine", 1),
    ]
    assert settings.needs_teacher
    alone = DistillationSettings(cross_entropy_weight=1, forward_kl_weight=0)
    assert not alone.needs_teacher
    assert len(list(weighted_token_sums(alone, torch.arange(N) % V, outputs[0], None))) == 1
    with pytest.raises(ValidationError, match="every weight is 0"):
        DistillationSettings(cross_entropy_weight=0, forward_kl_weight=0)
