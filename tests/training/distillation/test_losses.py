"""Distillation losses against their definitions."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.distillation import losses
from training.distillation.losses import (
    cross_entropy,
    forward_kl,
    hidden_cosine,
    jensen_shannon,
    reverse_kl,
    token_losses,
)
from training.distillation.outputs import StudentOutputs, TeacherOutputs
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


ALL = DistillationSettings(
    cross_entropy_weight=0.5,
    forward_kl_weight=1.5,
    reverse_kl_weight=0.7,
    jsd_weight=2,
    jsd_beta=0.3,
    hidden_cosine_weight=0.9,
    distill_temperature=1.5,
)
LABELS = torch.arange(N) % V


def gradients_of(student: torch.Tensor, teacher: torch.Tensor, settings: DistillationSettings) -> tuple:
    """Returns the losses, and gradients of logits and hidden states, which are functions of one leaf each."""
    leaf, hidden = student.clone().requires_grad_(), student[:, :5].clone().requires_grad_()
    answers = TeacherOutputs(teacher.__getitem__, teacher[:, :5])
    found = token_losses(settings, LABELS, StudentOutputs(leaf * 1.0, hidden * 1.0), answers)
    (found.total / 7).backward()
    return found.total.detach(), found.sums, leaf.grad, hidden.grad


@pytest.mark.parametrize("positions_of_a_chunk", [1, 5, N, N + 1])
def test_all_losses_and_their_gradients_in_chunks(student, teacher, monkeypatch, positions_of_a_chunk):
    monkeypatch.setattr(losses, "CHUNK_VALUES", positions_of_a_chunk * V)
    leaf, hidden = student.clone().requires_grad_(), student[:, :5].clone().requires_grad_()
    expected = {
        "cross_entropy": cross_entropy(leaf, LABELS),
        "forward_kl": forward_kl(leaf, teacher, distill_temperature=1.5),
        "reverse_kl": reverse_kl(leaf, teacher, distill_temperature=1.5),
        "jensen_shannon": jensen_shannon(leaf, teacher, jsd_beta=0.3, distill_temperature=1.5),
        "hidden_cosine": hidden_cosine(hidden, teacher[:, :5]),
    }
    weights = {"cross_entropy": 0.5, "forward_kl": 1.5, "reverse_kl": 0.7, "jensen_shannon": 2, "hidden_cosine": 0.9}
    total = sum(weights[name] * value for name, value in expected.items())
    (total / 7).backward()
    sums = {name: value.detach() for name, value in expected.items()}
    torch.testing.assert_close(gradients_of(student, teacher, ALL), (total.detach(), sums, leaf.grad, hidden.grad))


class Largest(TorchDispatchMode):
    """Counts tensors of at least so many values that operations make anew."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.made = size, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        given = {each.untyped_storage().data_ptr() for each in tree_leaves(args) if isinstance(each, torch.Tensor)}
        for each in tree_leaves(output):
            if isinstance(each, torch.Tensor) and each.numel() >= self.size:
                self.made += each.untyped_storage().data_ptr() not in given
        return output


def test_only_the_students_logits_are_held_whole(student, teacher, monkeypatch):
    settings = DistillationSettings(cross_entropy_weight=0.5, forward_kl_weight=1)
    hidden, head = torch.randn(N, 5), torch.randn(V, 5)

    def whole_tensors(positions_of_a_chunk: int) -> int:
        monkeypatch.setattr(losses, "CHUNK_VALUES", positions_of_a_chunk * V)
        logits = student.clone().requires_grad_() * 1.0
        answers = TeacherOutputs(lambda rows: hidden[rows] @ head.T, None)
        with Largest(N * V) as largest:
            token_losses(settings, LABELS, StudentOutputs(logits, None), answers).total.backward()
        return largest.made

    in_chunks = whole_tensors(5)
    assert in_chunks <= 1, "what multiplies by 1.0 here has a gradient of that size too"
    assert whole_tensors(N) > 5, "this would count them"


def test_a_batch_without_supervised_tokens_costs_nothing_and_has_a_gradient(student, teacher):
    leaf = student.clone().requires_grad_()
    answers = TeacherOutputs(teacher[:0].__getitem__, teacher[:0])
    found = token_losses(ALL, LABELS[:0], StudentOutputs(leaf[:0] * 1.0, leaf[:0]), answers)
    found.total.backward()
    assert found.total == 0 and not leaf.grad.any()
    assert list(found.sums) == ["cross_entropy", "forward_kl", "reverse_kl", "jensen_shannon", "hidden_cosine"]


def test_without_gradients_the_logits_stay_as_they_are(student, teacher):
    logits = student.clone()
    found = token_losses(ALL, LABELS, StudentOutputs(logits, logits), TeacherOutputs(teacher.__getitem__, teacher))
    assert torch.equal(logits, student) and not found.total.requires_grad


def test_half_precision_logits_are_computed_in_fp32(student, teacher):
    value = forward_kl(student.bfloat16(), teacher.bfloat16(), distill_temperature=1.0)
    assert value.dtype == torch.float32
    expected = forward_kl(student.bfloat16().float(), teacher.bfloat16().float(), distill_temperature=1.0)
    torch.testing.assert_close(value, expected)


def test_settings_choose_and_weigh_the_losses(student, teacher):
    settings = DistillationSettings(cross_entropy_weight=0.5, forward_kl_weight=0, jsd_weight=2, hidden_cosine_weight=1)
    outputs = StudentOutputs(student, student), TeacherOutputs(teacher.__getitem__, teacher)
    found = token_losses(settings, LABELS, *outputs)
    assert list(found.sums) == ["cross_entropy", "jensen_shannon", "hidden_cosine"]
    torch.testing.assert_close(
        found.total, sum(w * value for w, value in zip((0.5, 2, 1), found.sums.values(), strict=True))
    )
    assert settings.needs_teacher
    alone = DistillationSettings(cross_entropy_weight=1, forward_kl_weight=0)
    assert not alone.needs_teacher
    assert len(token_losses(alone, LABELS, outputs[0], None).sums) == 1
    only_hidden = DistillationSettings(cross_entropy_weight=0, forward_kl_weight=0, hidden_cosine_weight=1)
    _, sums, on_logits, on_hidden = gradients_of(student, teacher, only_hidden)
    assert list(sums) == ["hidden_cosine"] and not on_logits.any() and on_hidden.any()
    with pytest.raises(ValidationError, match="every weight is 0"):
        DistillationSettings(cross_entropy_weight=0, forward_kl_weight=0)
