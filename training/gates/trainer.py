"""The trainer of gates: the distillation trainer, plus a Lagrangian that holds the gates' expected cost to a target.

It does not use DeepSpeed, which casts every parameter to the model's dtype, as gates are fp32. Several processes use
torch's DistributedDataParallel.
"""

import json
from pathlib import Path

import torch
from torch.optim import AdamW, Optimizer

from training.distillation.callbacks import MetricsFile
from training.distillation.trainer import DistillationTrainer
from training.gates.lagrangian import falling_target
from training.gates.student import GatedStudent
from training.recipe.gates import GateSettings


class GateTrainer(DistillationTrainer):
    """Trains LoRA adapters, gates and multipliers together.

    Args:
        model: the student with its gates.
        settings: budget and learning rates.
        **kwargs: other arguments of `DistillationTrainer`.
    """

    def __init__(self, model: GatedStudent, *, settings: GateSettings, **kwargs):
        super().__init__(model=model, **kwargs)
        self.settings = settings
        with torch.no_grad():
            self._start_cost = float(model.expected_cost())
        self.add_callback(GatesFile(Path(self.args.output_dir) / "gates.jsonl"))

    @property
    def student(self):
        """The student without its gates."""
        return self.model.student

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns the distillation loss under one draw of the gates, plus this micro-batch's part of the Lagrangian."""
        gated, settings = self.model, self.settings
        progress = self.state.global_step / (settings.budget_reached * self.state.max_steps)
        gated.target = falling_target(self._start_cost, settings.budget.share, progress)
        gated.target_is_final = progress >= 1 or self._start_cost <= settings.budget.share
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        share = 1 / self.args.gradient_accumulation_steps
        share_of_rank = share / self.accelerator.num_processes
        self.accumulate_metric("cost", gated.cost.detach() * share_of_rank)
        self.accumulate_metric("target", torch.full_like(gated.cost.detach(), gated.target) * share_of_rank)
        return loss + gated.penalty * share

    def create_optimizer(self, model=None) -> Optimizer:
        """Returns AdamW with a learning rate each for adapters, gates and multipliers.

        The multipliers are trained to raise the loss, and everything else to lower it.
        """
        gated, settings = self.model, self.settings
        lora = [parameter for parameter in gated.student.parameters() if parameter.requires_grad]
        self.optimizer = AdamW(
            [
                {"params": lora, "lr": self.args.learning_rate},
                {"params": list(gated.gates.parameters()), "lr": settings.learning_rate},
                {
                    "params": list(gated.lagrangian.parameters()),
                    "lr": settings.multiplier_learning_rate,
                    "maximize": True,
                },
            ],
            betas=(self.args.adam_beta1, self.args.adam_beta2),
            eps=self.args.adam_epsilon,
            weight_decay=0.0,
        )
        return self.optimizer


class GatesFile(MetricsFile):
    """Appends what `GatedStudent.served_shares` returns to gates.jsonl at every log."""

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if state.is_world_process_zero and "cost" in logs:  # the summary at the end has no cost
            with torch.no_grad():
                shares = {
                    name: [round(share, 4) for share in values.tolist()]
                    for name, values in model.served_shares().items()
                }
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **shares}) + "\n")
