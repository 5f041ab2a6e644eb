"""The module that is trained while a plan is learned: LoRA adapters, gates and multipliers."""

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
    """What `GatedStudent` returns.

    `penalty` is an output so that DistributedDataParallel sees that the multipliers are used.
    """

    logits: torch.Tensor | None = None
    """The student's logits."""
    penalty: torch.Tensor | None = None
    """The Lagrangian, a scalar."""


class GatedStudent(nn.Module):
    """A student under gates. Each forward in training draws the gates anew.

    Its state dict holds what is trained, without the frozen weights.

    Args:
        student: a student with adapters, under the plan that `training.gates.start.base_plan` returns.
        gates: the gates.
        price: returns what a plan costs, in the budget's measure.

    Attributes:
        target: what the expected cost is held to, as a share of the dense model's cost.
        target_is_final: whether the target will not fall any more.
        cost: expected cost in the last forward, a scalar.
        penalty: Lagrangian in the last forward, a scalar.
    """

    _keys_to_ignore_on_save = None  # transformers.Trainer reads it when it continues a training

    def __init__(self, student: PeftModel, gates: VisualGates, price: PlanPrice):
        super().__init__()
        self.student, self.gates = student, gates
        self.lagrangian = Lagrangian(quadratic=1.0)
        self.price = price
        self.target, self.target_is_final = 1.0, False
        num_blocks = gates.log_alpha["neurons"].shape[1]
        sizes = torch.stack([block.bincount(minlength=num_blocks) for block in gates.block])
        self.register_buffer("block_sizes", sizes, persistent=False)

    def forward(self, **inputs) -> GatedOutput:
        """Runs the student under one draw of the gates. In eval mode the gates have their deterministic values."""
        outputs = self.student(**inputs, gates=self.gates())
        self.cost = self.expected_cost()
        self.penalty = self.lagrangian(self.cost, self.target, self.target_is_final)
        return GatedOutput(logits=outputs.logits, penalty=self.penalty)

    def gradient_checkpointing_enable(self, *args, **kwargs) -> None:
        """Has the student compute activations again in the backward pass. transformers.Trainer calls it."""
        self.student.gradient_checkpointing_enable(*args, **kwargs)

    def expected_cost(self) -> torch.Tensor:
        """Returns the expected cost, a differentiable scalar. The dense model costs 1."""
        base = self.student.get_base_model().visual_plan
        return self.price.expected(self.gates.open_probability(), self.block_sizes, base)

    def served_shares(self) -> dict[str, torch.Tensor]:
        """Returns the expected share of work that is done in each layer, as [L] for each kind of work.

        `read` is the share of heads through which text reads visual tokens. `attend` is the share of heads in which
        visual tokens attend. `ffn` is the share of FFN neurons that serve them. Work whose result nothing reads is not
        counted.
        """
        works = expected_work(self.gates.open_probability(), self.block_sizes)
        num_units, num_neurons = self.gates.log_alpha["heads"].shape[1], self.block_sizes.sum(1)[0]
        return {
            "read": torch.stack([work.read_units for work in works]) / num_units,
            "attend": torch.stack([work.query_units for work in works]) / num_units,
            "ffn": torch.stack([work.neurons for work in works]) / num_neurons,
        }

    def state_dict(self, *args, **kwargs) -> dict[str, torch.Tensor]:
        """As in torch, but only what is trained."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in trained}
