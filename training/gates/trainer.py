"""The trainer of gates: the distillation trainer, plus a Lagrangian that holds the gates' expected cost to a target.

The model is trained as in distillation, with or without DeepSpeed. Gates and multipliers stand outside of it, in fp32
and alike on all ranks, with an AdamW of their own. Their gradients are averaged over the ranks, as DDP and DeepSpeed
average those of the adapters. So it does not matter to them what wraps the model.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import AdamW

from training.distillation.callbacks import MetricsFile
from training.distillation.trainer import DistillationTrainer
from training.distillation.trainer_checkpoints import reading_checkpoint
from training.files import append_text
from training.gates.budgeted import BudgetedGates
from training.gates.lagrangian import falling_target
from training.recipe.gates import GateSettings

GATES_FILE, OPTIMIZER_FILE = "gates.safetensors", "gates_optimizer.pt"


class GateTrainer(DistillationTrainer):
    """Trains LoRA adapters, gates and multipliers together.

    The multipliers are trained to raise the loss, and everything else to lower it.

    Args:
        model: the student with adapters, under `gates.base`.
        gates: its gates and multipliers.
        settings: budget and learning rates.
        **kwargs: other arguments of `DistillationTrainer`.
    """

    def __init__(self, model: PeftModel, *, gates: BudgetedGates, settings: GateSettings, **kwargs):
        super().__init__(model=model, **kwargs)
        self.gates, self.settings = gates.to(self.args.device).train(), settings
        self.gates_optimizer = AdamW(
            [
                {"params": list(gates.gates.parameters()), "initial_lr": settings.learning_rate},
                {
                    "params": list(gates.lagrangian.parameters()),
                    "initial_lr": settings.multiplier_learning_rate,
                    "maximize": True,
                },
            ],
            betas=(self.args.adam_beta1, self.args.adam_beta2),
            eps=self.args.adam_epsilon,
            weight_decay=0.0,
        )
        with torch.no_grad():
            self._start_cost = float(gates.expected_cost())
        self.add_callback(GatesFile(Path(self.args.output_dir) / "gates.jsonl", gates))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns the distillation loss under one draw of the gates, plus this micro-batch's part of the Lagrangian."""
        settings = self.settings
        progress = self.state.global_step / (settings.budget_reached * self.state.max_steps)
        target = falling_target(self._start_cost, settings.budget.share, progress)
        target_is_final = progress >= 1 or self._start_cost <= settings.budget.share
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        cost = self.gates.expected_cost()
        share = 1 / self.current_gradient_accumulation_steps
        share_of_rank = share / self.accelerator.num_processes
        self.accumulate_metric("cost", cost.detach() * share_of_rank)
        self.accumulate_metric("target", torch.full_like(cost.detach(), target) * share_of_rank)
        return loss + self.gates.lagrangian(cost, target, target_is_final) * share

    def student_forward(self, model: nn.Module) -> Callable[..., Any]:
        """Returns the forward of the student under its gates, which are drawn anew in training."""
        return partial(model, gates=self.gates())

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As in `DistillationTrainer`. The last micro-batch of a step also changes gates and multipliers."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self._change_gates()
        return loss

    def _change_gates(self) -> None:
        """Takes the optimizer's step for gates and multipliers.

        Their learning rates rise as the adapters' does. Their gradients are scaled down to `max_grad_norm` apart from
        the adapters', which DeepSpeed scales down by itself.
        """
        parameters = list(self.gates.parameters())
        for parameter in parameters:
            # A rank whose batches have no picture may not have used a gate.
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self.accelerator.reduce(own, "mean")
        nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm)
        risen = self.lr_scheduler.get_last_lr()[0] / self.args.learning_rate
        for group in self.gates_optimizer.param_groups:
            group["lr"] = group["initial_lr"] * risen
        self.gates_optimizer.step()
        self.gates_optimizer.zero_grad()

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """As in `DistillationTrainer`, under the gates' deterministic values."""
        self.gates.eval()
        metrics = super().evaluate(*args, **kwargs)
        self.gates.train()
        return metrics

    def save_model(self, output_dir=None, _internal_call=False):
        """As in Trainer, which saves the adapters, and gates and multipliers beside them."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            save_file(self.gates.state_dict(), Path(output_dir) / GATES_FILE)

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            torch.save(self.gates_optimizer.state_dict(), Path(output_dir) / OPTIMIZER_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            with reading_checkpoint(checkpoint):
                self.gates.load_state_dict(load_file(Path(checkpoint) / GATES_FILE))
                self.gates_optimizer.load_state_dict(torch.load(Path(checkpoint) / OPTIMIZER_FILE, weights_only=True))


class GatesFile(MetricsFile):
    """Appends what `BudgetedGates.served_shares` returns to gates.jsonl at every log.

    Args:
        path: the file.
        gates: the gates that are trained.
    """

    def __init__(self, path: Path, gates: BudgetedGates):
        super().__init__(path)
        self.gates = gates

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and "cost" in logs:  # the summary at the end has no cost
            with torch.no_grad():
                shares = {
                    name: [round(share, 4) for share in values.tolist()]
                    for name, values in self.gates.served_shares().items()
                }
            append_text(self.path, json.dumps({"step": state.global_step, **shares}) + "\n")
