"""The trainer: transformers.Trainer with a distillation loss.

Teacher and student get the same batch. With LoRA the teacher is the student itself, with its adapters off and under the
dense plan. For full fine-tuning, and where the recipe names a teacher, it is a second model. If the batches hold stored
answers of the teacher (training/distillation/teacher_answers.py), it is not run at all. Logits are computed only where
the next token is supervised (`predicts_answer`).

The loss of a step is a sum over the supervised tokens of all its micro-batches and ranks, divided by the number of
these tokens. So it does not matter how a global batch is divided into micro-batches and ranks.

Besides the loss, the trainer stops at a loss that is not finite, logs every single loss, writes metrics.jsonl, and
continues from the last checkpoint.

B batch, S tokens of a padded row, N supervised positions of a batch, V vocab, D hidden_size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback
from transformers.integrations import unset_hf_deepspeed_config

from data.collator import TEXT_KEYS, predicts_answer
from data.streaming import StreamedDataset
from modeling.host_memory import to_device, to_host
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training import stops
from training.distillation.callbacks import MetricsFile, TrainingProgress, ValidateEvery
from training.distillation.datasets import conversations_of
from training.distillation.lora import adapters_off
from training.distillation.losses import chunks, token_losses
from training.distillation.monitoring.loss_watch import LossWatch
from training.distillation.monitoring.throughput import Throughput
from training.distillation.monitoring.trackers import tracker_run
from training.distillation.monitoring.validation import Validation
from training.distillation.outputs import StudentOutputs, TeacherOutputs, gathered, student_outputs, teacher_outputs
from training.distillation.sample_order import GroupedOrder, OrderedTrainer, SampleOrder
from training.distillation.teacher_answers import encoded_pictures
from training.distillation.trainer_checkpoints import TrainerCheckpoints, last_checkpoint
from training.recipe.distillation import DistillationSettings


class DistillationTrainer(OrderedTrainer):
    """Trains a sparse student on the answers in the data and on the teacher's distributions.

    Args:
        model: the student. It is a PeftModel, or the bare model for full fine-tuning.
        distillation: the losses and their weights.
        teacher: a model of the same class under the dense plan. None means that a PeftModel is its own teacher.
        validation: held-out samples that are looked at meanwhile, if any.
        pause_at: the step after which `train` returns with a checkpoint, before the last one; None for none. The
            held-out samples are looked at then.
        **kwargs: other arguments of transformers.Trainer. Batches are those of `data.collator.Collator`.

    Raises:
        UserError: teacher and student have different vocabularies. In training, it means that a loss is not finite or
            that a step has no supervised token.
    """

    def __init__(
        self,
        model: PeftModel | PreTrainedModel,
        *,
        distillation: DistillationSettings,
        teacher: PreTrainedModel | None = None,
        validation: Validation | None = None,
        pause_at: int | None = None,
        **kwargs,
    ):
        super().__init__(model=model, **kwargs)
        assert not (distillation.needs_teacher and teacher is None and not isinstance(self.model, PeftModel)), (
            "no teacher"
        )
        # compute_loss divides by the number of tokens in the whole step. This makes Trainer count them, and not divide
        # a second time.
        self.model_accepts_loss_kwargs = True
        self.distillation = distillation
        self.teacher = teacher
        self.validation = validation
        self.pause_at = pause_at
        self._metric_sums: dict[str, torch.Tensor] = {}
        self._metric_sums_begin = 0
        self._watch = LossWatch(self.accelerator)
        self._throughput: Throughput | None = None
        if teacher is not None:
            _check_vocabulary(teacher, model)
            teacher.requires_grad_(False).eval().to(self.args.device)
        self.remove_callback(PrinterCallback)
        if validation is not None:
            self.add_callback(ValidateEvery(validation.steps))
        self.add_callback(TrainingProgress())
        self.add_callback(MetricsFile(Path(self.args.output_dir) / "metrics.jsonl"))
        self.add_callback(TrainerCheckpoints(pause_at))

    def _get_train_sampler(self, train_dataset=None) -> SampleOrder:
        args = self.args
        if args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler()
        conversations = conversations_of(self.train_dataset)
        step_samples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return GroupedOrder(conversations.lengths, conversations.modality, step_samples, args.seed, self.epoch)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """As in Trainer. What is trained on is counted."""
        if self._throughput is None:
            self._throughput = Throughput(self.accelerator, self.state.global_step, self.state.max_steps)
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._throughput.count(batches)
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns this micro-batch's part of the step's loss, a scalar.

        It is multiplied by the number of ranks, as gradients are averaged over ranks.
        """
        assert not return_outputs, "the evaluation of this trainer needs the losses alone"
        with self._outputs(model, inputs, with_teacher=self.distillation.needs_teacher) as (targets, student, teacher):
            losses = token_losses(self.distillation, targets, student, teacher)
        for name, token_sum in losses.sums.items():
            self.accumulate_metric(name, token_sum / num_items_in_batch)
        return losses.total / num_items_in_batch * self.accelerator.num_processes

    @torch.no_grad()
    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Logs and returns the losses on the held-out samples, and the agreement of student and teacher.

        The agreement is the share of supervised tokens at which both find the same token most likely. Every rank takes
        its share of the samples. Training goes on as if they had not been looked at.
        """
        assert self.validation is not None
        self.model.eval()
        means = self.validation.means(
            self.args.per_device_train_batch_size,
            self._token_sums,
            lambda sums: self.accelerator.reduce(sums, "sum"),
        )
        self.model.train()
        metrics = {f"eval_{name}": mean for name, mean in means.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _token_sums(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns sums over the supervised tokens of a held-out batch, and as `tokens` their number."""
        has_teacher = self.teacher is not None or isinstance(self.model, PeftModel)
        # The bare model is called, as DDP and DeepSpeed expect a backward pass after each forward pass.
        batch = self._prepare_inputs(batch)
        with (
            self.compute_loss_context_manager(),
            self._outputs(self.model, batch, has_teacher) as (targets, student, teacher),
        ):
            losses = token_losses(self.distillation, targets, student, teacher)
            sums = {**losses.sums, "loss": losses.total, "tokens": torch.tensor(len(targets), device=targets.device)}
            if teacher is not None:
                sums["agreement"] = torch.zeros((), dtype=torch.long, device=targets.device)
                for rows in chunks(student.logits):
                    agrees = student.logits[rows].argmax(dim=-1) == teacher.logits(rows).argmax(dim=-1)
                    sums["agreement"] += agrees.sum()
        return sums

    @contextmanager
    def _outputs(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], with_teacher: bool
    ) -> Iterator[tuple[torch.Tensor, StudentOutputs, TeacherOutputs | None]]:
        """Yields the next token at each supervised position [N], and what student and teacher compute there.

        Args:
            model: the student, perhaps wrapped by DDP or DeepSpeed.
            inputs: a batch.
            with_teacher: whether the teacher is run. Stored answers are returned in any case.
        """
        # Rows and sizes follow from tokens, masks and grids. These are read at once and stay on the host, so that no
        # forward waits for the device.
        names = [name for name, value in inputs.items() if not value.is_floating_point()]
        on_host = dict(zip(names, to_host(*(inputs[name] for name in names)), strict=True))
        labels = on_host["labels"]
        supervised = predicts_answer(labels)  # [B, S]
        targets = to_device(labels.roll(-1, dims=1)[supervised], inputs["labels"].device)  # [N]

        inputs = {**inputs, "logits_mask": supervised}
        stored_logits = inputs.pop("teacher_logits", None)
        if isinstance(self.model, PeftModel) and self.teacher is None:  # which may have a tower of its own
            inputs = self._with_encoded_pictures(inputs, stored=stored_logits is not None)
        inputs |= {name: value for name, value in on_host.items() if name in inputs}
        if stored_logits is not None or not with_teacher:
            stored = None if stored_logits is None else TeacherOutputs(stored_logits.__getitem__, None)
            yield targets, student_outputs(self.student_forward(model), self.model, inputs), stored
            return
        with self._teacher_context() as teacher:
            answers = teacher_outputs(teacher, inputs)
        student = student_outputs(self.student_forward(model), self.model, inputs)
        with gathered(teacher.get_output_embeddings()):
            yield targets, student, answers

    def student_forward(self, model: nn.Module) -> Callable[..., Any]:
        """Returns the student's forward. A subclass may give it more arguments."""
        return model

    def accumulate_metric(self, name: str, value: torch.Tensor) -> None:
        """Adds a scalar to the metric `name`.

        The next log gives the sum over micro-batches and ranks, and of these sums the mean over steps.
        """
        if not self._metric_sums:
            self._metric_sums_begin = self.state.global_step
        self._metric_sums[name] = self._metric_sums.get(name, 0) + value

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As in Trainer. Whether the loss is finite is found out at the next log or checkpoint."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._watch.add(self.state.global_step + 1, loss, num_items_in_batch)
        return loss

    def _save_checkpoint(self, *args, **kwargs):
        """As in Trainer. Raises UserError if a loss was not finite, so that no checkpoint has weights from after it."""
        self._watch.look(self._get_learning_rate())
        super()._save_checkpoint(*args, **kwargs)

    def log(self, logs, start_time=None):
        """As in Trainer, with each accumulated metric: its mean over the steps since the last log.

        A log of training also has what `Throughput` counted.

        Raises:
            UserError: a loss since the last log was not finite.
        """
        self._watch.look(self._get_learning_rate())
        num_steps = self.state.global_step - self._metric_sums_begin
        if self._metric_sums and num_steps and "eval_loss" not in logs:
            for name, metric_sum in self._metric_sums.items():
                logs[name] = (self.accelerator.reduce(metric_sum, "sum") / num_steps).item()
            self._metric_sums = {}
        if "loss" in logs and self._throughput is not None:
            logs |= self._throughput.since_last_log(self.state.global_step)
        super().log(logs, start_time)

    def get_train_dataloader(self):
        """As in Trainer. Its workers do not hear the signals that stop a run, and load on until the step has ended.

        Of a stream each process reads its own part, so that accelerate has nothing to share out.
        """
        streamed = isinstance(self.train_dataset, StreamedDataset)
        loader = self._stream_loader() if streamed else super().get_train_dataloader()
        base = getattr(loader, "base_dataloader", loader)  # accelerate keeps the loader that starts the workers there
        base.worker_init_fn = partial(stops.deaf, base.worker_init_fn)
        return loader

    def _stream_loader(self) -> DataLoader:
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and not self.args.use_cpu,
        )

    def train(self, **kwargs):
        """Trains to the end, or to the pause. It continues from the last complete checkpoint in the output folder.

        Every process calls this. Stopped is raised if one of them was told to stop, after a checkpoint was saved.
        """
        checkpoint = last_checkpoint(Path(self.args.output_dir))
        linear = F.linear
        try:
            with tracker_run(self.args):
                return super().train(resume_from_checkpoint=str(checkpoint) if checkpoint else None, **kwargs)
        finally:
            # ZeRO-3 leaves two things behind in the process: it would divide every model that is loaded later, and has
            # put a linear layer of its own in place of torch's, which rounds otherwise.
            unset_hf_deepspeed_config()
            F.linear = linear

    @property
    def _zero_stage(self) -> int:
        """The stage of the training. transformers forgets it at the training's end, before the weights are saved."""
        return self.accelerator.state.deepspeed_plugin.zero_stage

    def save_model(self, output_dir=None, _internal_call=False):
        """As in Trainer. Of adapters on frozen weights, only the adapters are gathered.

        transformers would copy all weights to the CPU, on every rank, where DeepSpeed does not divide them.
        """
        if self.is_deepspeed_enabled and isinstance(self.model, PeftModel) and self._zero_stage < 3:
            trained = self.deepspeed.module_state_dict(exclude_frozen_parameters=True)
            self._save(output_dir, state_dict={name: value.detach().clone() for name, value in trained.items()})
        else:
            super().save_model(output_dir, _internal_call)

    @torch.no_grad()
    def _with_encoded_pictures(self, inputs: dict, stored: bool) -> dict:
        """Returns the inputs with features instead of pixels, so that teacher and student need not compute them both.

        Both have the same features, as LoRA leaves vision tower and projector frozen.

        Args:
            stored: whether the inputs have features already.
        """
        text = {name: inputs[name] for name in (*TEXT_KEYS, "logits_mask")}
        pictures = {name: value for name, value in inputs.items() if name not in text}
        if stored:
            return text | encoded_pictures(pictures)
        with self.accelerator.autocast():
            return text | self.model.get_base_model().encode_pictures(pictures)

    @contextmanager
    def _teacher_context(self) -> Iterator[nn.Module]:
        """Yields the teacher in eval mode, without gradients. Afterwards the student is as it was."""
        with torch.no_grad():
            if self.teacher is not None:
                yield self.teacher
                return
            # The bare module is called, as DDP and DeepSpeed expect a backward pass after each forward pass.
            student = self.model
            base = student.get_base_model()
            training = student.training
            student.eval()
            with adapters_off(student), base.use_plan(VisualPlan.dense(len(base.visual_plan))):
                yield student
            student.train(training)


def _check_vocabulary(teacher: nn.Module, student: nn.Module) -> None:
    """Raises UserError if the two models have vocabularies of different sizes."""
    sizes = {
        name: model.get_output_embeddings().out_features for name, model in (("teacher", teacher), ("student", student))
    }
    if len(set(sizes.values())) > 1:
        raise UserError(
            f"teacher and student disagree on the vocabulary: {sizes['teacher']} and {sizes['student']} tokens; "
            "logits can only be compared over the same one"
        )
