"""Hardening: how learned gates become a plan.

Gates are opened in the order of their log alpha, each where the budget still allows it. So the budget is met by
construction, and little of it is left. More orders are drawn from the gates' own noise. Of all these plans the one of
least answer KL is taken, with the adapters that were learned beside the gates in place.
"""

from collections.abc import Callable, Iterator, Mapping

import torch

from modeling.layer_plan import LayerPlan
from modeling.visual_gates import GATE_KINDS, VisualGates
from modeling.visual_plan import VisualPlan
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
    """Returns the plan of least answer KL among those that the gates are likely to mean, within the budget.

    Args:
        answer_kl: how far a plan moves the answers, with the adapters that were learned beside the gates.
        seed: of the orders that are drawn.
    """
    plans = (
        without_dead_work(_opened_in_order(gates, scores, base, price, settings.budget.share), gates)
        for scores in _scores(gates, settings.draws, seed)
    )
    return min(dict.fromkeys(plans), key=answer_kl)


def _scores(gates: VisualGates, draws: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yields log alpha, then log alpha with the hard concrete's noise, once for each draw."""
    log_alpha = {name: value.detach() for name, value in gates.log_alpha.items()}
    yield log_alpha
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        yield {
            name: value + torch.rand(value.shape, generator=generator).clamp(1e-6, 1 - 1e-6).logit()
            for name, value in log_alpha.items()
        }


def _opened_in_order(
    gates: VisualGates, scores: Mapping[str, torch.Tensor], base: VisualPlan, price: PlanPrice, share: float
) -> VisualPlan:
    """Returns the plan of gates opened by falling score, each where the budget still allows it."""
    opened = {name: gates.fixed_open(name) for name in GATE_KINDS}
    candidates = [
        (float(scores[name][place]), name, place)
        for name in GATE_KINDS
        for place in map(tuple, gates.learned(name).nonzero().tolist())
    ]
    plan = gates.plan(opened, base)
    for _, name, place in sorted(candidates, key=lambda candidate: -candidate[0]):
        opened[name][place] = True
        wider = gates.plan(opened, base)
        if price(wider) <= share:
            plan = wider
        else:
            opened[name][place] = False
    return plan


def without_dead_work(plan: VisualPlan, gates: VisualGates) -> VisualPlan:
    """Returns the same plan, in which each layer says only what it executes."""
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
