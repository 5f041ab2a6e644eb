"""The distillation trainer: who the teacher is, what a step's loss is, when it stops, how it resumes."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from data.collator import Collator
from modeling.visual_plan import VisualPlan
from tests.tiny_student import VOCAB_SIZE, single_samples, tiny_batch, tiny_student
from tests.waits import Waits, on_device
from training.distillation.arguments import training_arguments
from training.distillation.callbacks import read_metrics
from training.distillation.lora import add_lora
from training.distillation.monitoring.loss_watch import LossWatch
from training.distillation.trainer import DistillationTrainer
from training.recipe.distillation import DistillationSettings
from training.recipe.lora import LoraSettings
from training.recipe.training import TrainingSettings

LOSSES = DistillationSettings(cross_entropy_weight=0.5, forward_kl_weight=1.0, hidden_cosine_weight=0.1)
COLLATOR = Collator(SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0)))
# Answers of different lengths, with and without pictures: a mean of means would not be the mean.
DATASET = [
    {name: value if name == "pixel_values" else value[0] for name, value in sample.items()}
    for sample in single_samples(tiny_batch((1, 0, 2, 1, 1, 0, 1, 2)))
]


def sparse_plan() -> VisualPlan:
    return VisualPlan.dense(3).replace(1, ffn=8, heads=1).replace(2, tokens=0.0)


def student(rank: int = 2):
    model = tiny_student()
    model.set_visual_plan(sparse_plan())
    torch.manual_seed(3)
    return add_lora(model, LoraSettings(rank=rank, alpha=4))


def trainer(
    folder,
    model=None,
    dataset=DATASET,
    losses=LOSSES,
    callbacks=(),
    teacher=None,
    validation=None,
    pause_at=None,
    **settings,
) -> DistillationTrainer:
    values = {
        "max_steps": 1,
        "micro_batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.0,
        "max_grad_norm": 1e9,
        "precision": "float32",
        "deepspeed": None,
        "logging_steps": 1,
        "report_to": (),
    }
    settings = TrainingSettings(**{**values, **settings})
    return DistillationTrainer(
        model=student() if model is None else model,
        args=training_arguments(settings, folder, seed=5, name="student"),
        train_dataset=dataset,
        data_collator=COLLATOR,
        distillation=losses,
        callbacks=list(callbacks),
        teacher=teacher,
        validation=validation,
        pause_at=pause_at,
    )


class Gradients(TrainerCallback):
    """What the optimizer is about to be given."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def gradients(folder, **settings) -> tuple[dict, dict]:
    seen = Gradients()
    trainer(folder, callbacks=[seen], **settings).train()
    return seen.found, read_metrics(folder / "metrics.jsonl")[0]


def test_cutting_a_batch_into_micro_batches_changes_nothing(tmp_path):
    whole, logged = gradients(tmp_path / "1x8", micro_batch_size=8)
    cut, logged_cut = gradients(tmp_path / "8x1", micro_batch_size=1, gradient_accumulation_steps=8)
    assert whole and whole.keys() == cut.keys()
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-4, atol=1e-6)
    for name in ("loss", "cross_entropy", "forward_kl", "hidden_cosine"):
        assert logged_cut[name] == pytest.approx(logged[name], rel=1e-4)
    assert logged["loss"] == pytest.approx(
        0.5 * logged["cross_entropy"] + logged["forward_kl"] + 0.1 * logged["hidden_cosine"], rel=1e-5
    )
    other, _ = gradients(tmp_path / "half", micro_batch_size=4)
    assert any((other[name] - whole[name]).abs().max() > 1e-3 for name in whole), "any batch has these gradients"


def test_the_teacher_is_the_dense_model_without_adapters(tmp_path):
    model = student()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    batch = tiny_batch((1, 2))
    del batch["labels"]
    one = trainer(tmp_path, model=model.train())
    with one._teacher_context() as teacher:
        logits = teacher(**batch).logits
        assert not logits.requires_grad
    torch.testing.assert_close(logits, tiny_student()(**batch).logits, rtol=0, atol=0)
    assert model.training and model.get_base_model().visual_plan == sparse_plan()
    assert (model.eval()(**batch).logits - logits).abs().max() > 0.1
    batch["pixel_values"] = batch["pixel_values"] + 1
    with one._teacher_context() as teacher:
        assert (teacher(**batch).logits - logits).abs().max() > 1e-3, "the teacher does not see the pictures"


def test_a_student_like_its_teacher_has_nothing_to_learn_from_it(tmp_path):
    model = student()
    model.get_base_model().set_visual_plan(VisualPlan.dense(3))
    _, logged = gradients(tmp_path / "dense", model=model)
    assert logged["forward_kl"] == pytest.approx(0, abs=1e-5) and logged["cross_entropy"] > 1
    _, logged = gradients(tmp_path / "sparse")
    assert logged["forward_kl"] > 1e-3


def full_student():
    model = tiny_student()
    model.set_visual_plan(sparse_plan())
    model.model.vision_tower.requires_grad_(False)
    return model


def test_full_fine_tuning_learns_from_a_second_model(tmp_path):
    found, logged = gradients(tmp_path, model=full_student(), teacher=tiny_student())
    assert logged["forward_kl"] > 1e-3
    assert "model.multi_modal_projector.linear_1.weight" in found
    assert not any("vision_tower" in name for name in found)


def test_bad_losses_and_data_stop_the_run(tmp_path):
    broken = student()
    broken.get_output_embeddings().weight.data[5, 5] = float("nan")
    with pytest.raises(ValueError, match="step 1: the loss is nan"):
        trainer(tmp_path / "nan", model=broken).train()
    silent = [{**sample, "labels": torch.full_like(sample["labels"], -100)} for sample in DATASET]
    with pytest.raises(ValueError, match="step 1: no token of its batches is supervised"):
        trainer(tmp_path / "silent", dataset=silent).train()


class Break(TrainerCallback):
    """Spoils the weights after the first step."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        model.get_output_embeddings().weight.data.fill_(float("nan"))


@pytest.mark.parametrize("watched", [True, False])
def test_a_bad_loss_between_logs_is_found_before_a_checkpoint(tmp_path, watched, monkeypatch):
    """Losses are looked at when metrics are logged or a checkpoint is saved; without the look there would be one."""
    if not watched:
        monkeypatch.setattr(LossWatch, "look", lambda self, learning_rate: None)
    one = trainer(tmp_path, callbacks=[Break()], max_steps=4, save_steps=3, logging_steps=100)
    if watched:
        with pytest.raises(ValueError, match="step 2: the loss is nan"):
            one.train()
    else:
        one.train()
    assert bool(list(tmp_path.glob("checkpoint-*"))) is not watched


def test_losses_are_remembered_without_a_look():
    watch = LossWatch(SimpleNamespace(gather=lambda values: values))
    with Waits() as waits:
        for step, loss in ((1, 2.0), (2, float("inf")), (3, float("nan"))):
            watch.add(step, on_device(torch.tensor(loss)), on_device(torch.tensor(5)))
    assert waits.count == 0
    with Waits() as waits, pytest.raises(ValueError, match="step 2: the loss is inf"):
        watch.look(1e-4)
    assert waits.count == 1
    watch.look(1e-4)  # they are forgotten


def test_teacher_and_student_must_share_a_vocabulary(tmp_path):
    teacher = tiny_student()
    teacher.resize_token_embeddings(VOCAB_SIZE + 8)
    with pytest.raises(ValueError, match=f"disagree on the vocabulary: {VOCAB_SIZE + 8} and {VOCAB_SIZE} tokens"):
        trainer(tmp_path, model=tiny_student(), teacher=teacher)


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise KeyboardInterrupt


@pytest.mark.parametrize("lora", [True, False])
def test_a_killed_run_continues_with_the_same_losses(tmp_path, lora):
    def begin(folder, callbacks=()):
        models = {} if lora else {"model": full_student(), "teacher": tiny_student()}
        return trainer(tmp_path / folder, callbacks=callbacks, max_steps=6, save_steps=3, micro_batch_size=2, **models)

    begin("whole").train()
    with pytest.raises(KeyboardInterrupt):
        begin("killed", [Kill()]).train()
    assert read_metrics(tmp_path / "killed" / "metrics.jsonl")[-1]["step"] < 6
    begin("killed").train()

    whole, resumed = (
        [row for row in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in row]
        for name in ("whole", "killed")
    )
    assert [row["step"] for row in whole] == [row["step"] for row in resumed] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "cross_entropy", "forward_kl", "grad_norm", "learning_rate"):
        assert [row[name] for row in resumed] == pytest.approx([row[name] for row in whole], rel=1e-5), name
    assert len({round(row["loss"], 4) for row in whole}) == 6, "all steps look alike, so their order was not shown"
