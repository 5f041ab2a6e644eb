"""The price of a plan: its share of the stock model's cost, in the measure that a budget bounds.

Plans that are found and plans that are learned have the same price. While a plan is learned by gates, its expected
price is exact, because gates are independent and each enters a layer's cost once. The visual work of a layer is alive
if a later layer is read, which other gates decide. With P(open) of each gate, these are the expected amounts of work
of layer l:

    readable_j = read_j (1 - prod_u (1 - heads_ju)),  alive_l = 1 - prod_{j > l} (1 - readable_j),
    neurons = alive ffn sum_k neurons_k size_k,  querying units = alive attend sum_u heads_u,
    units read = read sum_u heads_u,  units with keys = sum_u heads_u (1 - (1 - read) (1 - alive attend)).

If every probability is 0 or 1, this is the price of the hard plan. Both use the counter of modeling/visual_flops.py.
"""

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedConfig

from checkpoints.families import reference_images
from modeling.visual_flops import (
    DecoderShape,
    Work,
    layer_kv_values,
    layer_shared_macs,
    layer_visual_macs,
    ranking_macs,
)
from modeling.visual_plan import LiveLayer, VisualPlan
from training.measure.costs import TEXT_TOKENS
from training.measure.latency import LatencyTable


class PlanPrice:
    """Gives the prices of plans of one model. The stock model's price is 1, and dead work costs nothing.

    Args:
        config: config of the model.
        measure: one of the fields of `Budget`.
        latency: timings of the machine, needed for the measure `latency`. In this measure the dense plan's price is 1.
    """

    def __init__(self, config: PreTrainedConfig, measure: str = "visual_flops", latency: LatencyTable | None = None):
        assert measure != "latency" or latency is not None
        self._decoder, self._images = DecoderShape.from_config(config.text_config), reference_images(config)
        self._measure, self._latency = measure, latency
        self._cost_of: dict[LiveLayer, float] = {}
        self._stock_cost = 0 if measure == "latency" else sum(map(self.layer_cost, self._decoder.stock_layers()))

    def __call__(self, plan: VisualPlan) -> float:
        """Returns the price of a plan. Raises UserError if the plan does not fit the model."""
        layers = self._decoder.live_layers(plan)
        costs = list(map(self.layer_cost, layers))
        if self._measure == "model_flops":
            costs.append(ranking_macs(layers, self._decoder, self._images, TEXT_TOKENS, text_before=None))
        return self.of_layer_costs(costs)

    def layer_cost(self, layer: LiveLayer) -> float:
        """Returns the cost of one layer in the measure's own unit, without the choice of tokens.

        It is kept: a search prices many plans that differ in few layers.
        """
        if layer not in self._cost_of:
            self._cost_of[layer] = self._layer_cost(Work.of(layer), layer)
        return self._cost_of[layer]

    def of_layer_costs(self, costs: Sequence[float]) -> float:
        """Returns the price of a plan that chooses no tokens, given what `layer_cost` returns for each layer."""
        return self._latency.share(costs) if self._measure == "latency" else sum(costs) / self._stock_cost

    def expected(
        self, probability: Mapping[str, torch.Tensor], block_sizes: torch.Tensor, base: VisualPlan
    ) -> torch.Tensor:
        """Returns the expected price of gates that are open with these probabilities, as a differentiable scalar.

        Args:
            probability: the probabilities by kind of gate, as `VisualGates.open_probability` gives them.
            block_sizes: [L, K] number of neurons in each of the K blocks of a layer.
            base: the plan that gives `radius`, which no gate decides. It must carry all visual tokens.
        """
        layers = self._decoder.live_layers(base)
        return self.of_layer_costs(list(map(self._layer_cost, expected_work(probability, block_sizes), layers)))

    def _layer_cost(self, work: Work, layer: LiveLayer) -> float | torch.Tensor:
        """Returns the cost of one layer: MACs for FLOPs measures, numbers of keys and values, or seconds."""
        match self._measure:
            case "visual_flops":
                return layer_visual_macs(work, layer, self._decoder, self._images)
            case "model_flops":
                shared = layer_shared_macs(work, layer, self._decoder, self._images, TEXT_TOKENS, TEXT_TOKENS)
                return layer_visual_macs(work, layer, self._decoder, self._images) + shared
            case "kv_bytes":
                return layer_kv_values(work, layer, self._decoder, self._images, TEXT_TOKENS)
            case "latency":
                return self._latency.layer_seconds(work, layer.tokens)
        raise AssertionError(self._measure)


def expected_work(probability: Mapping[str, torch.Tensor], block_sizes: torch.Tensor) -> list[Work]:
    """Returns each layer's expected work by the formulas at the top of this file.

    The arguments are those of `PlanPrice.expected`.
    """
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
