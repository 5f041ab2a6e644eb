"""Opens gates one by one within a budget. Each step is priced from counts, without a plan of lists.

A decoder of 32 layers has some 1,600 gates, and hardening opens them in 33 orders. If every step priced a whole plan,
that would take tens of minutes. A gate changes one layer, so a step costs one layer's price and one sum. Only where the
gate lets text read a layer beyond the last one so far, the layers up to it come alive and are priced again.
"""

from dataclasses import replace

import torch

from modeling.layer_plan import LayerPlan
from modeling.visual_gates import GATE_KINDS, VisualGates
from modeling.visual_plan import VisualPlan
from training.measure.price import PlanPrice


class OpeningGates:
    """Gates that are opened one after the other, as long as the plan they make stays within a budget.

    Args:
        gates: the gates. Those that are not learned are open or shut from the start.
        base: what no gate decides (`training.gates.start.base_plan`).
        price: the price of plans.
        share: the budget, as a share of the dense model's cost.
    """

    def __init__(self, gates: VisualGates, base: VisualPlan, price: PlanPrice, share: float):
        self._gates, self._base, self._price, self._share = gates, base, price, share
        self._opened = {name: gates.fixed_open(name).clone() for name in GATE_KINDS}
        num_blocks = self._opened["neurons"].shape[1]
        self._num_units, self._num_neurons = self._opened["heads"].shape[1], gates.block.shape[1]
        self._block_sizes = [block.bincount(minlength=num_blocks).tolist() for block in gates.block]
        self._cost_of: dict[tuple[LayerPlan, ...], float] = {}
        self._units = self._opened["heads"].sum(1).tolist()
        self._neurons = (self._opened["neurons"] * torch.tensor(self._block_sizes)).sum(1).tolist()
        self._flags = {name: self._opened[name].tolist() for name in ("attend", "ffn", "read")}
        self._last_read = max((layer for layer in range(len(base)) if self._is_readable(layer)), default=-1)
        self._costs = self._all_costs(self._last_read)

    def open(self, kind: str, place: tuple[int, ...]) -> None:
        """Opens a gate, unless the plan would then cost more than the budget.

        Args:
            kind: the kind of the gate.
            place: its place in that kind's log alpha.
        """
        layer = place[0]
        self._set(kind, place, True)
        last_read = max(self._last_read, layer) if self._is_readable(layer) else self._last_read
        if last_read == self._last_read:
            costs = [*self._costs]
            costs[layer] = self._cost(layer, last_read)
        else:
            costs = self._all_costs(last_read)
        if self._price.of_layer_costs(costs) <= self._share:
            self._costs, self._last_read = costs, last_read
        else:
            self._set(kind, place, False)

    @property
    def plan(self) -> VisualPlan:
        """The plan of the gates that are open now."""
        return self._gates.plan(self._opened, self._base)

    def _set(self, kind: str, place: tuple[int, ...], is_open: bool) -> None:
        layer, sign = place[0], 1 if is_open else -1
        self._opened[kind][place] = is_open
        if kind == "heads":
            self._units[layer] += sign
        elif kind == "neurons":
            self._neurons[layer] += sign * self._block_sizes[layer][place[1]]
        else:
            self._flags[kind][layer] = is_open

    def _is_readable(self, layer: int) -> bool:
        return self._flags["read"][layer] and self._units[layer] > 0

    def _all_costs(self, last_read: int) -> list[float]:
        return [self._cost(layer, last_read) for layer in range(len(self._base))]

    def _cost(self, layer: int, last_read: int) -> float:
        """Returns the cost of a layer as it is now, in the price's own unit."""
        counts = replace(
            self._base.layers[layer],
            attend=self._flags["attend"][layer],
            read=self._flags["read"][layer],
            heads=self._units[layer],
            ffn=self._neurons[layer] if self._flags["ffn"][layer] else 0,
        )
        # In the last layer that is read, the updates are dead. Beyond it no visual token is carried.
        behind = (LayerPlan(),) if layer < last_read else ()
        layers = (LayerPlan(tokens=0.0),) if layer > last_read else (counts, *behind)
        if layers not in self._cost_of:
            live = VisualPlan(layers).live(self._num_units, self._num_neurons)[0]
            self._cost_of[layers] = self._price.layer_cost(live)
        return self._cost_of[layers]
