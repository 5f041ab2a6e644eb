"""What learned gates may cost: the expected cost of a gated plan, and the Lagrangian that holds it to the budget.

The expectation is exact. Gates are independent, and each enters a layer's cost once: its own visual work is alive where a
later layer is read, and those are other gates. With P(open) of each gate, for layer l:
    readable_j = read_j (1 - prod_u (1 - heads_ju)),  alive_l = 1 - prod_{j > l} (1 - readable_j),
    neurons = alive ffn sum_k neurons_k size_k,  querying units = alive attend sum_u heads_u,  units read = read sum_u heads_u,
    units with keys = sum_u heads_u (1 - (1 - read) (1 - alive attend)).
At probabilities 0 and 1 it is the cost of the hard plan, by the same counter as the report's (modeling/visual_flops.py).
"""

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import PreTrainedConfig

from checkpoints.families import reference_images
from modeling.visual_flops import (
    DecoderShape,
    Work,
    layer_kv_values,
    layer_shared_macs,
    layer_visual_macs,
)
from modeling.visual_plan import LiveLayer, VisualPlan
from training.measure.costs import TEXT_TOKENS
from training.measure.latency import LatencyTable
from training.schema import Strict


class GateBudget(Strict):
    """The most a learned plan may spend, of one thing, as a share of the dense model's; for a sample with one image."""

    visual_flops: float | None = Field(default=None, gt=0, le=1)
    """FLOPs of visual tokens in prefill (convention B of modeling/visual_flops.py)."""
    model_flops: float | None = Field(default=None, gt=0, le=1)
    """FLOPs of the decoder's whole prefill (convention C), with 64 text tokens."""
    kv_bytes: float | None = Field(default=None, gt=0, le=1)
    """Keys and values held after prefill, with 64 text tokens."""
    latency: float | None = Field(default=None, gt=0, le=1)
    """Time of the decoder's prefill on this machine, with 64 text tokens, as a table of timings predicts it."""

    @model_validator(mode="after")
    def _one_bound(self):
        if sum(value is not None for value in vars(self).values()) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def measure(self) -> str:
        """Which cost is bounded."""
        return next(name for name, value in vars(self).items() if value is not None)

    @property
    def share(self) -> float:
        """The bound."""
        return getattr(self, self.measure)


class GatedCost:
    """The cost, in the budget's measure, of gated and of hard plans of one model; 1 is the stock model.

    Args:
        base: what no gate decides, `radius`; else dense.
        latency: for a budget of latency, the table that predicts it; the dense plan is then 1.
    """

    def __init__(
        self, config: PreTrainedConfig, base: VisualPlan, budget: GateBudget, latency: LatencyTable | None = None
    ):
        self._decoder, self._images = DecoderShape.from_config(config.text_config), reference_images(config)
        self._base = self._decoder.live_layers(base)
        self._measure = budget.measure
        self._latency = latency
        stock = self._decoder.stock_layers()
        self._stock = 1.0 if latency else self._cost([Work.of(layer) for layer in stock], stock)

    def price(self, plan: VisualPlan) -> float:
        """Of a plan, dead work left out."""
        layers = self._decoder.live_layers(plan)
        return self._cost([Work.of(layer) for layer in layers], layers) / self._stock

    def expected(self, probability: Mapping[str, torch.Tensor], block_sizes: torch.Tensor) -> torch.Tensor:
        """Of gates that are open with these probabilities; a differentiable scalar.

        Args:
            probability: for each kind of gate, as `VisualGates.open_probability` gives them.
            block_sizes: [L, K] neurons of each block.
        """
        return self._cost(expected_work(probability, block_sizes), self._base) / self._stock

    def _cost(self, works: list[Work], layers: Sequence[LiveLayer]) -> float | torch.Tensor:
        if self._measure == "latency":
            return self._latency.share(works)
        return sum(self._layer(work, layer) for work, layer in zip(works, layers, strict=True))

    def _layer(self, work: Work, layer: LiveLayer):
        match self._measure:
            case "visual_flops":
                return layer_visual_macs(work, layer, self._decoder, self._images)
            case "model_flops":
                shared = layer_shared_macs(work, layer, self._decoder, self._images, TEXT_TOKENS, TEXT_TOKENS)
                return layer_visual_macs(work, layer, self._decoder, self._images) + shared
            case "kv_bytes":
                return layer_kv_values(work, layer, self._decoder, self._images, TEXT_TOKENS)
        raise AssertionError(self._measure)


def expected_work(probability: Mapping[str, torch.Tensor], block_sizes: torch.Tensor) -> list[Work]:
    """Each layer's expected work: the formulas at the top of this file."""
    attend, ffn, read = (probability[name] for name in ("attend", "ffn", "read"))
    heads, neurons = probability["heads"], probability["neurons"]
    unreadable = 1 - read * (1 - (1 - heads).prod(dim=1))
    works: list[Work] = []
    dead = torch.ones_like(read[0])
    for layer in reversed(range(len(read))):
        querying = (1 - dead) * attend[layer]
        units = heads[layer].sum()
        works.append(
            Work(
                neurons=(1 - dead) * ffn[layer] * (neurons[layer] * block_sizes[layer]).sum(),
                key_units=units * (1 - (1 - read[layer]) * (1 - querying)),
                query_units=units * querying,
                read_units=units * read[layer],
            )
        )
        dead = dead * unreadable[layer]
    return works[::-1]


class Lagrangian(nn.Module):
    """Holds a cost to a target: linear * x + quadratic * x^2 with x = cost / target - 1, the multipliers trained upwards
    (the augmented Lagrangian of arXiv 1910.04732, with the distance relative: a target of 2 % is held as closely as 25 %).

    While the target still falls the cost lags behind it, and a linear multiplier that learned from that lag would push the
    cost far below the budget afterwards. So it takes part once the target rests.
    """

    def __init__(self, quadratic: float):
        super().__init__()
        self.linear = nn.Parameter(torch.zeros(()))
        self.quadratic = nn.Parameter(torch.tensor(quadratic))

    def forward(self, cost: torch.Tensor, target: float, rests: bool) -> torch.Tensor:
        excess = cost / target - 1
        return rests * self.linear * excess + self.quadratic * excess**2


def falling_target(start: float, target: float, progress: float) -> float:
    """The target on the way down: geometric from `start` to `target` as `progress` goes from 0 to 1, then constant."""
    return start * (target / start) ** min(progress, 1.0) if start > target else target
