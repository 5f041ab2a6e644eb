"""How learning a plan begins: the gates that a given plan opens."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedConfig

from modeling.layer_plan import LayerPlan, num_served
from modeling.user_error import UserError
from modeling.visual_gates import GATE_KINDS, VisualGates
from modeling.visual_plan import VisualPlan
from training.measure.budget import Budget
from training.measure.calibration import Calibration
from training.measure.price import PlanPrice
from training.recipe.gates import GateSettings


def gates_at_start(
    config: PreTrainedConfig, calibration: Calibration, start: VisualPlan, settings: GateSettings
) -> VisualGates:
    """Returns gates that are open where `start` serves visual tokens, and shut elsewhere.

    A gate that is shut at first is learned too, if its kind is learned.

    FFN neurons are divided into blocks in the order of their calibrated importance.

    Args:
        config: the model's config.
        calibration: statistics of the dense model.
        start: the plan that learning starts from.
        settings: which kinds of gates there are, and how far they are open at first.

    Raises:
        UserError: `start` does not fit the model, or carries a share of the visual tokens, which no gate can choose. Or
            it shuts what the gates of the profile `servable` cannot shut.
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
                f"plan.start: layer {index}: shuts more than attention updates and FFN neurons, "
                "allowed with profile: max"
            )
        opened["attend"][index] = layer.attend and carried
        opened["read"][index] = layer.read and carried
        opened["ffn"][index] = num_served(layer.ffn, num_neurons) > 0 and carried
        opened["heads"][index, _indices(layer.heads, num_units)] = carried
        # A block is open if most of its neurons serve visual tokens.
        served = torch.zeros(num_neurons)
        served[_indices(layer.ffn, num_neurons)] = 1.0
        share = torch.zeros(num_blocks).index_add(0, block[index], served) / block[index].bincount(minlength=num_blocks)
        opened["neurons"][index] = (share > 0.5) & carried
    return VisualGates(
        log_alpha={name: torch.where(values, settings.openness, -settings.openness) for name, values in opened.items()},
        learned={name: torch.full_like(values, name in settings.learned_kinds) for name, values in opened.items()},
        block=block,
    )


def base_plan(start: VisualPlan) -> VisualPlan:
    """Returns a plan with only what no gate decides: how far visual tokens see in each layer of `start`."""
    return VisualPlan(
        layers=tuple(LayerPlan(radius=layer.radius, bidirectional=layer.bidirectional) for layer in start.layers)
    )


def check_budget(gates: VisualGates, base: VisualPlan, price: PlanPrice, budget: Budget) -> None:
    """Raises UserError if the budget cannot be met even with every gate shut that can be shut."""
    least = price(gates.plan({name: gates.fixed_open(name) for name in GATE_KINDS}, base))
    budget.refuse_below(least, "what no gate can shut")


def _indices(units: int | Sequence[int] | None, total: int) -> list[int]:
    """Returns the indices that a plan's `heads` or `ffn` stands for."""
    return list(range(num_served(units, total))) if not isinstance(units, tuple) else list(units)
