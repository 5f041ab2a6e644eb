"""What is trained while a plan is learned: LoRA, gates and multipliers, in one module."""

from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn
from transformers.utils import ModelOutput

from modeling.visual_gates import VisualGates
from training.gates.lagrangian import Lagrangian
from training.measure.price import PlanPrice, expected_work


@dataclass
class GatedOutput(ModelOutput):
    """Logits as the student's, and the Lagrangian: an output, so that data parallelism knows that the multipliers take part."""

    logits: torch.Tensor | None = None
    penalty: torch.Tensor | None = None


class GatedStudent(nn.Module):
    """A student under gates, drawn anew in each forward.

    Its state is what is trained, not the frozen weights.

    Args:
        student: adapters on a student under the plan that gates do not decide (dense, but for `radius`).
        gates: open and shut what that plan serves.
        price: of plans, in the budget's measure.

    Attributes:
        target, target_rests: what the expected cost is held to, and whether that will not fall further.
        cost, penalty: expected cost and Lagrangian of the last forward.
    """

    _keys_to_ignore_on_save = None  # transformers.Trainer looks for it where it resumes

    def __init__(self, student: PeftModel, gates: VisualGates, price: PlanPrice):
        super().__init__()
        self.student, self.gates = student, gates
        self.lagrangian = Lagrangian(quadratic=1.0)
        self.price = price
        self.target, self.target_rests = 1.0, False
        num_blocks = gates.log_alpha["neurons"].shape[1]
        sizes = torch.stack([block.bincount(minlength=num_blocks) for block in gates.block])
        self.register_buffer("block_sizes", sizes, persistent=False)

    def forward(self, **inputs) -> GatedOutput:
        """The student under one draw of the gates (in eval mode: under their deterministic values)."""
        outputs = self.student(**inputs, gates=self.gates())
        self.cost = self.expected_cost()
        self.penalty = self.lagrangian(self.cost, self.target, self.target_rests)
        return GatedOutput(logits=outputs.logits, penalty=self.penalty)

    def expected_cost(self) -> torch.Tensor:
        """Differentiable scalar; the stock model costs 1."""
        base = self.student.get_base_model().visual_plan
        return self.price.expected(self.gates.open_probability(), self.block_sizes, base)

    def served_shares(self) -> dict[str, torch.Tensor]:
        """Per layer [L], the expected shares of heads that text reads, of heads that visual tokens query, and of FFN neurons
        that serve them; work that nobody reads is not served."""
        works = expected_work(self.gates.open_probability(), self.block_sizes)
        num_units, num_neurons = self.gates.log_alpha["heads"].shape[1], self.block_sizes.sum(1)[0]
        return {
            "read": torch.stack([work.read_units for work in works]) / num_units,
            "attend": torch.stack([work.query_units for work in works]) / num_units,
            "ffn": torch.stack([work.neurons for work in works]) / num_neurons,
        }

    def state_dict(self, *args, **kwargs) -> dict[str, torch.Tensor]:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in trained}
