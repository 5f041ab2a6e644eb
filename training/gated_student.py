"""What is trained while a plan is learned: LoRA, gates and multipliers, in one module."""

import torch
from peft import PeftModel
from torch import nn

from modeling.visual_gates import VisualGates
from training.budget import GatedCost, Lagrangian


class GatedStudent(nn.Module):
    """A student under gates, drawn anew in each forward.

    Its state is what is trained, not the frozen weights.

    Args:
        student: adapters on a student under the plan that gates do not decide (dense, but for `radius`).
        gates: open and shut what that plan serves.
        cost: of gated plans, in the budget's measure.
    """

    _keys_to_ignore_on_save = None  # transformers.Trainer looks for it where it resumes

    def __init__(self, student: PeftModel, gates: VisualGates, cost: GatedCost):
        super().__init__()
        self.student, self.gates = student, gates
        self.lagrangian = Lagrangian(quadratic=1.0)
        self._cost = cost
        num_blocks = gates.log_alpha["neurons"].shape[1]
        sizes = torch.stack([block.bincount(minlength=num_blocks) for block in gates.block])
        self.register_buffer("block_sizes", sizes, persistent=False)

    def forward(self, **inputs):
        """The student's outputs under one draw of the gates (in eval mode: under their deterministic values)."""
        return self.student(**inputs, gates=self.gates())

    def expected_cost(self) -> torch.Tensor:
        """Differentiable scalar; the stock model costs 1."""
        return self._cost.expected(self.gates.open_probability(), self.block_sizes)

    def state_dict(self, *args, **kwargs) -> dict[str, torch.Tensor]:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in trained}
