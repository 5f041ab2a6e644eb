"""Hardening: how learned gates become a plan.

All learned gates are shut at first. They are opened in the order of their log alpha, but a gate stays shut if the plan
would cost more than the budget. So the budget is met, and little of it is left. Other orders are drawn by adding the
noise that the gates had in training. Each order gives a plan. The plan with the least answer KL is taken, measured with
the adapters that were learned together with the gates.
"""

from collections.abc import Callable, Iterator, Mapping

import torch

from modeling.layer_plan import LayerPlan
from modeling.visual_gates import GATE_KINDS, VisualGates
from modeling.visual_plan import VisualPlan
from training.gates.opening import OpeningGates
from training.measure.price import PlanPrice
from training.recipe.gates import GateSettings


def harden(
    gates: VisualGates,
    base: VisualPlan,
    price: PlanPrice,
    settings: GateSettings,
    answer_kl: Callable[[VisualPlan], float],
    seed: int,
) -> VisualPlan:
    """Returns the plan within the budget that has the least answer KL, among several that the gates make likely.

    Args:
        gates: the learned gates, on the CPU.
        base: what no gate decides (`training.gates.start.base_plan`).
        price: returns what a plan costs, as a share of the dense model's cost.
        settings: the budget, and how many orders are drawn.
        answer_kl: returns the KL of a plan's answers from the dense model's, in nats per supervised token.
        seed: seed of the orders that are drawn.
    """
    plans = (
        without_dead_work(opened_in_order(gates, scores, base, price, settings.budget.share), gates)
        for scores in _scores(gates, settings.draws, seed)
    )
    return min(dict.fromkeys(plans), key=answer_kl)


def _scores(gates: VisualGates, draws: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yields log alpha, then log alpha plus the noise of the hard concrete distribution for each draw."""
    log_alpha = {name: value.detach() for name, value in gates.log_alpha.items()}
    yield log_alpha
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        yield {
            name: value + torch.rand(value.shape, generator=generator).clamp(1e-6, 1 - 1e-6).logit()
            for name, value in log_alpha.items()
        }


def opened_in_order(
    gates: VisualGates, scores: Mapping[str, torch.Tensor], base: VisualPlan, price: PlanPrice, share: float
) -> VisualPlan:
    """Returns the plan of gates that are opened by falling score.

    A gate stays shut if the plan would cost more than `share` of the dense model's cost.
    """
    candidates = [
        (float(scores[name][place]), name, place)
        for name in GATE_KINDS
        for place in map(tuple, gates.learned(name).nonzero().tolist())
    ]
    opening = OpeningGates(gates, base, price, share)
    for _, name, place in sorted(candidates, key=lambda candidate: -candidate[0]):
        opening.open(name, place)
    return opening.plan


def without_dead_work(plan: VisualPlan, gates: VisualGates) -> VisualPlan:
    """Returns the same plan without work whose result nothing reads."""
    num_units, num_neurons = gates.log_alpha["heads"].shape[1], gates.block.shape[1]
    layers = [
        layer
        if live.tokens == 0
        else LayerPlan(
            attend=live.attend,
            read=live.read,
            heads=layer.heads if live.num_heads else 0,
            ffn=layer.ffn if live.num_ffn else 0,
            radius=live.radius,
            bidirectional=live.bidirectional,
        )
        for layer, live in zip(plan.layers, plan.live(num_units, num_neurons), strict=True)
    ]
    return VisualPlan(layers=tuple(layers))
