"""Learning a plan: the distillation trainer, with gates on the student and a Lagrangian that holds their expected cost.

No DeepSpeed here: its engine casts every parameter to the model's dtype, and gates are fp32. Several processes train under
torch's own data parallelism.
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
    """Trains LoRA, gates and multipliers together.

    Args:
        model: what is trained.
        settings: budget and learning rates.
        others: as for `DistillationTrainer`.
    """

    def __init__(self, model: GatedStudent, *, settings: GateSettings, **kwargs):
        super().__init__(model=model, **kwargs)
        self.settings = settings
        with torch.no_grad():
            self._start = float(model.expected_cost())
        self.add_callback(GatesFile(Path(self.args.output_dir) / "gates.jsonl"))

    @property
    def student(self):
        return self.model.student

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The distillation loss under one draw of the gates, and this micro-batch's share of the Lagrangian."""
        gated, settings = self.model, self.settings
        progress = self.state.global_step / (settings.budget_reached * self.state.max_steps)
        gated.target = falling_target(self._start, settings.budget.share, progress)
        gated.target_rests = progress >= 1 or self._start <= settings.budget.share
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        share = 1 / self.args.gradient_accumulation_steps
        of_all = share / self.accelerator.num_processes
        self.accumulate_metric("cost", gated.cost.detach() * of_all)
        self.accumulate_metric("target", torch.full_like(gated.cost.detach(), gated.target) * of_all)
        return loss + gated.penalty * share

    def create_optimizer(self, model=None) -> Optimizer:
        """LoRA at the recipe's rate, gates and multipliers at theirs; multipliers climb where all else descends."""
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
    """Appends to gates.jsonl what is expected to serve vision, as `GatedStudent.served_shares` gives it, at every log."""

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if state.is_world_process_zero and "cost" in logs:  # not in the summary at the end
            with torch.no_grad():
                shares = {
                    name: [round(share, 4) for share in of.tolist()] for name, of in model.served_shares().items()
                }
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **shares}) + "\n")
