"""Held-out samples: apart from those trained on, measured as one by one, shared by ranks, and without a trace."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.dataset import ConversationDataset
from data.sample import Sample
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from tests.indexed import indexed
from tests.tiny_processor import tiny_processor
from tests.tiny_student import single_samples, tiny_batch, tiny_student
from tests.training.distillation.test_trainer import COLLATOR, full_student, sparse_plan, student, trainer
from tests.training.gates.test_trainer import trainer as gate_trainer
from training.distillation.callbacks import read_metrics
from training.distillation.lora import adapters_off, add_lora
from training.distillation.monitoring import validation as validation_module
from training.distillation.monitoring.validation import Validation, hold_out
from training.distillation.trainer import DistillationTrainer
from training.recipe.distillation import DistillationSettings
from training.recipe.lora import LoraSettings

PICTURES = (2, 0, 1, 1, 0)
SINGLES = single_samples(tiny_batch(PICTURES, seed=7))


class HeldOut(list):
    """Encoded samples, with the attributes of a `ConversationDataset`."""

    modality = np.array(PICTURES) > 0
    lengths = np.array([single["input_ids"].shape[1] for single in SINGLES])


HELD_OUT = HeldOut(
    {name: value if name == "pixel_values" else value[0] for name, value in single.items()} for single in SINGLES
)


def validation(steps: int = 2) -> Validation:
    return Validation(HELD_OUT, COLLATOR, steps)


# ---- which samples are held out ----


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> ConversationDataset:
    """Ten conversations, of which the first three are there twice."""
    samples = [Sample(str(number), (), ((f"question {number}", "yes"),)) for number in range(10)]
    return indexed([*samples, *samples[:3]], tiny_processor(), tmp_path_factory.mktemp("conversations"))


def held_out_one_by_one(samples: list[Sample], num_samples: int, seed: int) -> list[Sample]:
    """The slow reference: the samples themselves are compared, not their digests."""
    first = {sample: samples.index(sample) for sample in samples}
    return sorted(random.Random(f"{seed} validation").sample(list(first), num_samples), key=first.__getitem__)


def test_held_out_samples_are_not_trained_on(dataset):
    for seed in range(5):
        kept, held_out = hold_out(dataset, 4, seed)
        assert len(set(held_out.samples)) == len(held_out) == 4
        assert not set(kept.samples) & set(held_out.samples)
        assert set(kept.samples) | set(held_out.samples) == set(dataset.samples)
        assert sorted([*kept.samples, *held_out.samples], key=str) == sorted(
            [*(sample for sample in dataset.samples if sample in kept.samples), *held_out.samples], key=str
        )
    assert list(hold_out(dataset, 4, 4)[1].samples) == list(held_out.samples)
    assert list(held_out.samples) == held_out_one_by_one(list(dataset.samples), 4, 4)
    assert len({tuple(hold_out(dataset, 4, seed)[1].samples) for seed in range(5)}) > 1
    for part in (kept, held_out):
        for index, sample in enumerate(part.samples):
            expected = dataset[dataset.samples.index(sample)]
            assert torch.equal(part[index]["input_ids"], expected["input_ids"])
            assert part.lengths[index] == len(expected["input_ids"])


def test_something_is_left_to_train_on(dataset):
    assert len(hold_out(dataset, 9, 0)[0]) >= 1
    with pytest.raises(UserError, match="validation.num_samples: got 10, allowed: less than the 10 different samples"):
        hold_out(dataset, 10, 0)


# ---- what is measured ----


@torch.no_grad()
def one_by_one(model, teacher_logits, settings: DistillationSettings) -> dict[str, float]:
    """The slow reference: each sample alone, all logits."""
    sums = dict.fromkeys(("cross_entropy", "forward_kl", "agreement"), 0.0)
    tokens = 0
    for single in SINGLES:
        inputs = {name: value for name, value in single.items() if name != "labels"}
        answers = single["labels"][0, 1:] != -100
        labels = single["labels"][0, 1:][answers]
        own = model(**inputs).logits[0, :-1][answers]
        dense = teacher_logits(inputs)[0, :-1][answers]
        sums["cross_entropy"] += F.cross_entropy(own, labels, reduction="sum").item()
        kl = F.kl_div(own.log_softmax(-1), dense.log_softmax(-1), reduction="sum", log_target=True)
        sums["forward_kl"] += kl.item()
        sums["agreement"] += (own.argmax(-1) == dense.argmax(-1)).sum().item()
        tokens += len(labels)
    means = {f"eval_{name}": value / tokens for name, value in sums.items()}
    loss = settings.cross_entropy_weight * means["eval_cross_entropy"] + means["eval_forward_kl"]
    return {**means, "eval_loss": loss}


LOSSES = DistillationSettings(cross_entropy_weight=0.5, forward_kl_weight=1.0)


def learned(model):
    """With adapters that matter, so that a student whose adapters are off would be noticed."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    return model


def looked_at(one: DistillationTrainer) -> dict[str, float]:
    """What the trainer finds before any training, when it has no learning rate yet."""
    one._get_learning_rate = lambda: 0.0
    return one.evaluate()


@pytest.mark.parametrize("lora", [True, False])
def test_loss_and_agreement_are_those_of_the_samples_one_by_one(tmp_path, lora):
    model, teacher = (learned(student()), None) if lora else (full_student(), tiny_student())
    one = trainer(tmp_path, model=model, teacher=teacher, losses=LOSSES, micro_batch_size=2, validation=validation())
    found = looked_at(one)

    def teacher_logits(inputs):
        if not lora:
            return teacher(**inputs).logits
        with adapters_off(model), model.get_base_model().use_plan(VisualPlan.dense(3)):
            return model(**inputs).logits

    expected = one_by_one(model.eval(), teacher_logits, LOSSES)
    assert 0 < expected["eval_agreement"] < 1 and expected["eval_forward_kl"] > 1e-3
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    if lora:
        assert model.get_base_model().visual_plan == sparse_plan(), "the student's plan is in force again"


def test_a_student_like_its_teacher_agrees_with_it(tmp_path):
    model = student()
    model.get_base_model().set_visual_plan(VisualPlan.dense(3))
    found = looked_at(trainer(tmp_path, model=model, losses=LOSSES, validation=validation()))
    assert found["eval_agreement"] == 1 and found["eval_forward_kl"] == pytest.approx(0, abs=1e-5)


def test_agreement_is_measured_where_no_loss_needs_the_teacher(tmp_path):
    losses = DistillationSettings(cross_entropy_weight=1.0, forward_kl_weight=0.0)
    found = looked_at(trainer(tmp_path / "lora", losses=losses, validation=validation()))
    assert {"eval_loss", "eval_cross_entropy", "eval_agreement"} <= found.keys()
    alone = looked_at(trainer(tmp_path / "full", model=full_student(), losses=losses, validation=validation()))
    assert "eval_agreement" not in alone, "there is no teacher"


# ---- in a training ----


def rows_of(folder: Path, name: str) -> list[dict]:
    return [row for row in read_metrics(folder / "metrics.jsonl") if name in row]


def same_losses(first: Path, second: Path, count: int) -> None:
    """Speeds differ from run to run, and everything else is the same to the last bit."""
    names = ("step", "loss", "grad_norm", "learning_rate", "epoch", "cross_entropy", "forward_kl", "cost")
    rows = [[{name: row.get(name) for name in names} for row in rows_of(folder, "loss")] for folder in (first, second)]
    assert rows[0] == rows[1] and len(rows[0]) == count


def begin_with_dropout(folder: Path, held_out: Validation | None):
    model = tiny_student()
    model.set_visual_plan(sparse_plan())
    torch.manual_seed(3)
    model = add_lora(model, LoraSettings(rank=2, alpha=4, dropout=0.2))
    return trainer(folder, model=model, validation=held_out, max_steps=5, micro_batch_size=2)


def test_training_goes_on_as_if_nobody_had_looked(tmp_path):
    """With dropout, so that one drawn number more or less would show."""
    begin_with_dropout(tmp_path / "blind", None).train()
    begin_with_dropout(tmp_path / "seen", validation()).train()
    same_losses(tmp_path / "blind", tmp_path / "seen", 5)
    seen = rows_of(tmp_path / "seen", "eval_loss")
    assert [row["step"] for row in seen] == [2, 4, 5]
    assert len({row["eval_loss"] for row in seen}) == 3
    assert not rows_of(tmp_path / "blind", "eval_loss")
    assert all("loss" not in row and "forward_kl" not in row for row in seen)


def test_gates_are_learned_as_if_nobody_had_looked(tmp_path):
    """Their draws in training are random, and in validation they have their deterministic values."""
    for name, held_out in (("blind", None), ("seen", validation())):
        torch.manual_seed(0)
        gate_trainer(tmp_path / name, steps=4, validation=held_out).train()
    same_losses(tmp_path / "blind", tmp_path / "seen", 4)
    seen = rows_of(tmp_path / "seen", "eval_loss")
    assert [row["step"] for row in seen] == [2, 4] and not any("eval_cost" in row for row in seen)


# ---- several processes ----


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_ranks_share_the_samples_and_take_as_many_steps(processes, monkeypatch):
    shares = []
    for number in range(processes):
        monkeypatch.setattr(validation_module, "rank", lambda number=number: number)
        monkeypatch.setattr(validation_module, "world_size", lambda: processes)
        shares.append(list(validation().own_batches(2)))
    assert len({len(share) for share in shares}) == 1, "a rank would wait for the others"
    counted = [batch for share in shares for batch, counts in share if counts]
    rows = [row[mask.bool()].tolist() for batch in counted
            for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]  # fmt: skip
    assert sorted(rows) == sorted(sample["input_ids"].tolist() for sample in HELD_OUT)


def test_means_over_ranks_are_those_of_one(monkeypatch):
    """Three batches on two ranks: one rank has a batch that does not count."""

    def sums(batch: dict) -> dict[str, torch.Tensor]:
        answers = batch["labels"] != -100
        return {"value": batch["input_ids"][answers].float().sum(), "tokens": answers.sum()}

    alone = validation().means(2, sums, lambda own: own)
    partial: list[torch.Tensor] = []
    for number in range(2):
        monkeypatch.setattr(validation_module, "rank", lambda number=number: number)
        monkeypatch.setattr(validation_module, "world_size", lambda: 2)
        found = validation().means(2, sums, lambda own: (partial.append(own), sum(partial))[1])
    assert found == pytest.approx(alone)
