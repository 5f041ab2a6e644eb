"""Gates under a budget: what is learned beside the LoRA adapters, and what it costs.

The adapters are parameters of the model, which DDP or DeepSpeed wraps. Gates and multipliers are not: DeepSpeed casts
every parameter of its model to one dtype, while these must be fp32. They are a few thousand numbers, so every rank
holds them all (training/gates/trainer.py).
"""

import torch
from torch import nn

from modeling.visual_gates import LayerGates, VisualGates
from modeling.visual_plan import VisualPlan
from training.gates.lagrangian import Lagrangian
from training.measure.price import PlanPrice, expected_work


class BudgetedGates(nn.Module):
    """The gates of a student, the multipliers that hold their cost to a target, and their price.

    Args:
        gates: the gates.
        base: what no gate decides (`training.gates.start.base_plan`). The student is under this plan.
        price: returns what a plan costs, in the budget's measure.
    """

    def __init__(self, gates: VisualGates, base: VisualPlan, price: PlanPrice):
        super().__init__()
        self.gates, self.base, self.price = gates, base, price
        self.lagrangian = Lagrangian(quadratic=1.0)
        num_blocks = gates.log_alpha["neurons"].shape[1]
        sizes = torch.stack([block.bincount(minlength=num_blocks) for block in gates.block])
        self.register_buffer("block_sizes", sizes, persistent=False)

    def forward(self) -> list[LayerGates]:
        """Returns each layer's gates. In training they are one draw, else their deterministic values."""
        return self.gates()

    def expected_cost(self) -> torch.Tensor:
        """Returns the expected cost, a differentiable scalar. The dense model costs 1."""
        return self.price.expected(self.gates.open_probability(), self.block_sizes, self.base)

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
