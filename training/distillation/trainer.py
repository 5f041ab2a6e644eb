"""The trainer: transformers.Trainer with a distillation loss, and nothing else of its own.

Teacher and student get the same processed batch, pictures included. With LoRA the teacher is the student's own base
weights, adapters off, under the dense plan; for full fine-tuning it is a second model. Logits exist only where the next
token is supervised (`predicts_answer`).

The loss of a step is (weighted token sums of all its micro-batches and ranks) / (their number of supervised tokens), so
how a global batch is cut into micro-batches and ranks changes nothing.

B batch, S tokens of a padded row, N supervised positions of a batch, V vocab, D hidden_size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PrinterCallback, Trainer
from transformers.integrations import unset_hf_deepspeed_config

from data.collator import TEXT_KEYS, predicts_answer
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.distillation.callbacks import MetricsFile, ProgressLine, last_checkpoint
from training.distillation.kept_answers import with_features
from training.distillation.lora import adapters_off
from training.distillation.losses import Rows, weighted_token_sums
from training.recipe.distillation import DistillationSettings


class DistillationTrainer(Trainer):
    """Trains a sparse student on the data's answers and on the teacher's.

    Args:
        model: the student; a PeftModel over it (then it is its own teacher), or the bare model for full fine-tuning.
        distillation: which losses, how much of each.
        teacher: for full fine-tuning, a model of the same class under its own plan.
        others: as for transformers.Trainer. Batches are those of `data.collator.Collator`.
    Raises:
        UserError: teacher and student differ in vocabulary; while training: a loss that is not finite, a step whose
            batches supervise no token.
    """

    def __init__(
        self,
        model: PeftModel | PreTrainedModel,
        *,
        distillation: DistillationSettings,
        teacher: PreTrainedModel | None = None,
        **kwargs,
    ):
        super().__init__(model=model, **kwargs)
        assert not (distillation.needs_teacher and teacher is None and not isinstance(self.student, PeftModel)), (
            "no teacher"
        )
        # compute_loss divides by the tokens of the whole step itself: Trainer must count them, and not divide again.
        self.model_accepts_loss_kwargs = True
        self.distillation = distillation
        self.teacher = teacher
        self._parts: dict[str, torch.Tensor] = {}
        self._parts_step = 0
        if teacher is not None:
            _check_vocabulary(teacher, model)
            teacher.requires_grad_(False).eval().to(self.args.device)
        self.remove_callback(PrinterCallback)
        self.add_callback(ProgressLine())
        self.add_callback(MetricsFile(Path(self.args.output_dir) / "metrics.jsonl"))

    @property
    def student(self) -> PeftModel | PreTrainedModel:
        """The student inside what is trained."""
        return self.model

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's share of the step's loss, scaled by the ranks over which gradients are averaged."""
        assert not return_outputs, "there is no evaluation loop in this trainer"
        labels = inputs["labels"]
        supervised = predicts_answer(labels)  # [B, S]
        targets = labels.roll(-1, dims=1)[supervised]  # [N]
        if num_items_in_batch == 0:
            raise UserError(
                f"step {self.state.global_step + 1}: no token of its batches is supervised, nothing to train on"
            )

        inputs = {**inputs, "logits_mask": supervised}
        kept_logits = inputs.pop("teacher_logits", None)
        if isinstance(self.student, PeftModel):
            inputs = self._with_encoded_pictures(inputs)
        teacher_rows = None
        if kept_logits is not None:
            teacher_rows = Rows(kept_logits, None)
        elif self.distillation.needs_teacher:
            with self._teacher() as teacher:
                teacher_rows = _supervised_rows(teacher, teacher, inputs)
        student_rows = _supervised_rows(model, self.student, inputs)

        loss = torch.zeros((), device=labels.device)
        for name, weight, token_sum in weighted_token_sums(self.distillation, targets, student_rows, teacher_rows):
            part = token_sum / num_items_in_batch
            self.add_part(name, part.detach())
            loss = loss + weight * part
        return loss * self.accelerator.num_processes

    def add_part(self, name: str, part: torch.Tensor) -> None:
        """Adds to what `log` gives as `name`: the sum over micro-batches and ranks, mean over steps."""
        if not self._parts:
            self._parts_step = self.state.global_step
        self._parts[name] = self._parts.get(name, 0) + part

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise UserError(
                f"step {self.state.global_step + 1}: the loss is {loss.item()}; "
                f"the learning rate (now {self._get_learning_rate():.2g}) may be too high, or the data or weights hold NaN"
            )
        return loss

    def log(self, logs, start_time=None):
        """Adds each part of the loss, mean over the steps since the last log."""
        num_steps = self.state.global_step - self._parts_step
        if self._parts and num_steps:
            for name, part in self._parts.items():
                logs[name] = (self.accelerator.reduce(part, "sum") / num_steps).item()
            self._parts = {}
        super().log(logs, start_time)

    def train(self, **kwargs):
        """Trains to the end, from the last whole checkpoint in the output folder where there is one."""
        checkpoint = last_checkpoint(Path(self.args.output_dir))
        try:
            return super().train(resume_from_checkpoint=str(checkpoint) if checkpoint else None, **kwargs)
        finally:
            # Else every model loaded later in this process would be split up by ZeRO-3.
            unset_hf_deepspeed_config()

    @torch.no_grad()
    def _with_encoded_pictures(self, inputs: dict) -> dict:
        """The pictures as what projector and vision tower, frozen under LoRA, make of them: once for both models."""
        text = {name: inputs[name] for name in (*TEXT_KEYS, "logits_mask")}
        pictures = {name: value for name, value in inputs.items() if name not in text}
        if self.distillation.keep_answers:
            return text | with_features(pictures)
        with self.accelerator.autocast():
            return text | self.student.get_base_model().encode_pictures(pictures)

    @contextmanager
    def _teacher(self) -> Iterator[nn.Module]:
        """The teacher: dense, in eval mode, without gradients. The student is as before afterwards."""
        with torch.no_grad():
            if self.teacher is not None:
                yield self.teacher
                return
            # The bare module: a forward that is never followed by a backward is no business of DDP's or DeepSpeed's.
            student = self.student
            base = student.get_base_model()
            training = student.training
            student.eval()
            with adapters_off(student), base.use_plan(VisualPlan.dense(len(base.visual_plan))):
                yield student
            student.train(training)


def _supervised_rows(model: nn.Module, bare_model: nn.Module, inputs: dict) -> Rows:
    """Forward of `model`, whatever wraps it. `bare_model` is the module inside, whose lm_head sees just these rows."""
    hidden: list[torch.Tensor] = []
    head = bare_model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, arguments: hidden.append(arguments[0]))
    try:
        logits = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    return Rows(logits, *hidden)


def _check_vocabulary(teacher: nn.Module, student: nn.Module) -> None:
    sizes = {
        name: model.get_output_embeddings().out_features for name, model in (("teacher", teacher), ("student", student))
    }
    if len(set(sizes.values())) > 1:
        raise UserError(
            f"teacher and student disagree on the vocabulary: {sizes['teacher']} and {sizes['student']} tokens; "
            "logits can only be compared over the same one"
        )
