"""Gates planner: the plan is learned. Its settings, where learning starts from, and how what was learned becomes a plan.

Learning itself (training/gates/trainer.py) trains gates and LoRA together by distillation under the budget. Hardening then
asks which gates are open. Gates are opened in the order of their log alpha as long as the budget allows, so that the budget
is met by construction and little of it is left; more orders are drawn from the gates' own noise, and the plan of least
answer KL, with the LoRA that was learned beside it, is taken.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from transformers import PreTrainedConfig

from modeling.layer_plan import LayerPlan, num_served
from modeling.user_error import UserError
from modeling.visual_gates import GATE_KINDS, VisualGates
from modeling.visual_plan import VisualPlan
from training.measure.calibration import Calibration
from training.measure.price import GateBudget, GatedCost
from training.recipe.gates import GateSettings


def gates_at_start(
    config: PreTrainedConfig, calibration: Calibration, start: VisualPlan, settings: GateSettings
) -> VisualGates:
    """Gates that are open where `start` serves vision.

    Blocks hold the FFN neurons in the order of their calibrated importance. A gate that `start` shuts is learned too.

    Raises:
        UserError: `start` carries a part of the visual tokens, about which gates say nothing, or shuts what the profile
            asked for cannot.
    """
    text = config.text_config
    num_layers, num_units, num_neurons = text.num_hidden_layers, text.num_key_value_heads, text.intermediate_size
    start.check(num_layers, num_units, num_neurons)
    num_blocks = min(settings.ffn_blocks, num_neurons)
    rank = calibration.neuron_importance.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # [L, M]
    block = rank * num_blocks // num_neurons
    opened = {name: torch.zeros(num_layers, dtype=torch.bool) for name in ("attend", "ffn", "read")}
    opened["heads"] = torch.zeros(num_layers, num_units, dtype=torch.bool)
    opened["neurons"] = torch.zeros(num_layers, num_blocks, dtype=torch.bool)
    for index, layer in enumerate(start.layers):
        if 0 < layer.tokens < 1:
            raise UserError(
                f"plan.start: layer {index}: tokens: got {layer.tokens}, allowed: 1 or 0 (gates choose no tokens)"
            )
        carried = layer.tokens == 1
        if settings.profile == "servable" and not (
            carried and layer.read and num_served(layer.heads, num_units) == num_units
        ):
            raise UserError(
                f"plan.start: layer {index}: shuts more than attention updates and FFN neurons, allowed with profile: max"
            )
        opened["attend"][index] = layer.attend and carried
        opened["read"][index] = layer.read and carried
        opened["ffn"][index] = num_served(layer.ffn, num_neurons) > 0 and carried
        opened["heads"][index, _indices(layer.heads, num_units)] = carried
        # A block is open where most of its neurons are served.
        served = torch.zeros(num_neurons)
        served[_indices(layer.ffn, num_neurons)] = 1.0
        share = torch.zeros(num_blocks).index_add(0, block[index], served) / block[index].bincount(minlength=num_blocks)
        opened["neurons"][index] = (share > 0.5) & carried
    return VisualGates(
        log_alpha={name: torch.where(values, settings.openness, -settings.openness) for name, values in opened.items()},
        learned={name: torch.full_like(values, name in settings.learned) for name, values in opened.items()},
        block=block,
    )


def base_plan(start: VisualPlan) -> VisualPlan:
    """What no gate decides of `start`: how far visual tokens see."""
    return VisualPlan(
        layers=tuple(LayerPlan(radius=layer.radius, bidirectional=layer.bidirectional) for layer in start.layers)
    )


def check_budget(gates: VisualGates, base: VisualPlan, cost: GatedCost, budget: GateBudget) -> None:
    """Raises UserError where the budget cannot be met, not even with every gate shut that may be."""
    least = cost.price(gates.plan({name: gates.fixed_open(name) for name in GATE_KINDS}, base))
    if least > budget.share:
        raise UserError(
            f"plan.budget.{budget.measure}: got {budget.share:g}, allowed: {least:.4g} or more, the cost of what no gate can shut"
        )


def harden(
    gates: VisualGates,
    base: VisualPlan,
    cost: GatedCost,
    settings: GateSettings,
    answer_kl: Callable[[VisualPlan], float],
    seed: int,
) -> VisualPlan:
    """The plan of least answer KL among those that the gates are likely to mean, within the budget.

    Args:
        answer_kl: of a plan, with what was learned beside the gates.
    """
    plans = (
        without_dead_work(_opened_in_order(gates, scores, base, cost, settings.budget.share), gates)
        for scores in _scores(gates, settings.draws, seed)
    )
    return min(dict.fromkeys(plans), key=answer_kl)


def _scores(gates: VisualGates, draws: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """log alpha, then log alpha with the hard concrete's noise."""
    log_alpha = {name: value.detach() for name, value in gates.log_alpha.items()}
    yield log_alpha
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        yield {
            name: value + torch.rand(value.shape, generator=generator).clamp(1e-6, 1 - 1e-6).logit()
            for name, value in log_alpha.items()
        }


def _opened_in_order(
    gates: VisualGates, scores: Mapping[str, torch.Tensor], base: VisualPlan, cost: GatedCost, share: float
) -> VisualPlan:
    """Learned gates opened by falling score, each where the budget allows it after those before it."""
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
        if cost.price(wider) <= share:
            plan = wider
        else:
            opened[name][place] = False
    return plan


def without_dead_work(plan: VisualPlan, gates: VisualGates) -> VisualPlan:
    """The same plan, saying of each layer only what it executes."""
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


def _indices(units: int | Sequence[int] | None, total: int) -> list[int]:
    """Of a plan's `heads` or `ffn`."""
    return list(range(num_served(units, total))) if not isinstance(units, tuple) else list(units)
