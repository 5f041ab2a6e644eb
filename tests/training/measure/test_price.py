"""The expected price of gates is exact and differentiable, and equals the hard plan's price at 0 and 1.

The Lagrangian pulls the price down to its falling target.
"""

import itertools

import pytest
import torch
from pydantic import ValidationError
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from modeling.layer_plan import LayerPlan
from modeling.visual_gates import GATE_KINDS, VisualGates
from modeling.visual_plan import VisualPlan
from training.gates.lagrangian import Lagrangian, falling_target
from training.measure.budget import Budget
from training.measure.costs import fractions
from training.measure.price import PlanPrice

NUM_LAYERS, NUM_UNITS, NUM_NEURONS, NUM_BLOCKS = 3, 2, 10, 2
CONFIG = LlavaConfig(
    text_config=LlamaConfig(
        hidden_size=32,
        intermediate_size=NUM_NEURONS,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=2 * NUM_UNITS,
        num_key_value_heads=NUM_UNITS,
    ),
    vision_config=CLIPVisionConfig(image_size=40, patch_size=8),
)
SHAPES = {"attend": (3,), "ffn": (3,), "read": (3,), "heads": (3, NUM_UNITS), "neurons": (3, NUM_BLOCKS)}
BASES = {"dense": VisualPlan.dense(NUM_LAYERS), "radius": VisualPlan((LayerPlan(radius=1),) * NUM_LAYERS)}
MEASURES = ["visual_flops", "model_flops", "kv_bytes"]
# Blocks of different sizes: 3 and 7 neurons.
BLOCK = (torch.arange(NUM_NEURONS) > 2).long().expand(NUM_LAYERS, -1)
SIZES = torch.tensor([[3, 7]] * NUM_LAYERS)


def gates() -> VisualGates:
    learned = {name: torch.ones(shape, dtype=torch.bool) for name, shape in SHAPES.items()}
    return VisualGates({name: torch.zeros(shape) for name, shape in SHAPES.items()}, learned, BLOCK)


def cost(measure="visual_flops") -> PlanPrice:
    return PlanPrice(CONFIG, measure)


def states(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) < 0.6 for name, shape in SHAPES.items()}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("seed", range(8))
def test_at_zero_and_one_it_is_the_plans_cost(seed, measure, base):
    opened = states(seed)
    plan = gates().plan(opened, BASES[base])
    expected = cost(measure).expected({name: value.double() for name, value in opened.items()}, SIZES, BASES[base])
    assert float(expected) == pytest.approx(fractions(plan, CONFIG)[measure], rel=1e-9)
    assert cost(measure)(plan) == pytest.approx(fractions(plan, CONFIG)[measure], rel=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_it_is_the_mean_over_all_states_of_the_gates(measure):
    """The gates of the last two layers, but for what is dead in the last, have 2^10 states. All others are fixed."""
    generator = torch.Generator().manual_seed(0)
    probability = {name: torch.rand(shape, generator=generator, dtype=torch.double) for name, shape in SHAPES.items()}
    first = states(3)
    free = []
    for name in GATE_KINDS:
        for place in itertools.product(*map(range, SHAPES[name])):
            if place[0] == 1 or (place[0] == 2 and name in ("read", "heads")):
                free.append((name, place))
            else:
                probability[name][place] = first[name][place].double()
    assert len(free) == 10
    counter, table, mean = cost(measure), gates(), 0.0
    opened = {name: value.clone() for name, value in first.items()}
    for state in itertools.product([False, True], repeat=len(free)):
        weight = 1.0
        for (name, place), is_open in zip(free, state, strict=True):
            opened[name][place] = is_open
            weight *= float(probability[name][place]) if is_open else 1 - float(probability[name][place])
        mean += weight * counter(table.plan(opened, BASES["dense"]))
    assert float(counter.expected(probability, SIZES, BASES["dense"])) == pytest.approx(mean, rel=1e-9)


def test_gradients_by_finite_differences():
    generator = torch.Generator().manual_seed(1)
    values = [torch.rand(SHAPES[name], generator=generator, dtype=torch.double).requires_grad_() for name in GATE_KINDS]

    def expected(*probability):
        return cost().expected(dict(zip(GATE_KINDS, probability, strict=True)), SIZES, BASES["dense"])

    assert torch.autograd.gradcheck(expected, values)


def test_shutting_what_is_dead_saves_nothing():
    """Nothing reads the last layer's update, so the gates of the update have no price. Reading has one."""
    probability = {name: torch.full(shape, 0.5, dtype=torch.double).requires_grad_() for name, shape in SHAPES.items()}
    cost().expected(probability, SIZES, BASES["dense"]).backward()
    for name in ("attend", "ffn"):
        assert probability[name].grad[-1] == 0 and probability[name].grad[0] > 0
    assert probability["read"].grad[-1] > 0


def test_a_budget_bounds_one_thing():
    assert Budget(kv_bytes=0.3).measure == "kv_bytes"
    for wrong in ({}, {"visual_flops": 0.1, "kv_bytes": 0.3}, {"visual_flops": -0.1}, {"visual_flops": 1.5}):
        with pytest.raises(ValidationError):
            Budget(**wrong)


def test_multipliers_pull_a_cost_down_to_its_target():
    """A toy problem: descent on the logit of the cost, ascent on the multipliers."""
    logit = torch.tensor(3.0, requires_grad=True)
    lagrangian = Lagrangian(quadratic=1.0)
    descent = torch.optim.SGD([logit], lr=0.05)
    ascent = torch.optim.SGD(lagrangian.parameters(), lr=0.05, maximize=True)
    for _ in range(3000):
        share = torch.sigmoid(logit)
        task = -0.1 * logit  # wants the cost high
        loss = task + lagrangian(share, 0.12, True)
        descent.zero_grad()
        ascent.zero_grad()
        loss.backward()
        descent.step()
        ascent.step()
    assert torch.sigmoid(logit).item() == pytest.approx(0.12, rel=0.02)


def test_the_linear_multiplier_waits_until_the_target_rests():
    for rests in (False, True):
        lagrangian = Lagrangian(quadratic=1.0)
        lagrangian(torch.tensor(0.3), 0.12, rests).backward()
        assert (lagrangian.linear.grad.item() != 0) is rests
        assert lagrangian.quadratic.grad.item() == pytest.approx(1.5**2)


def test_the_target_falls_geometrically_and_then_stays():
    assert [falling_target(0.8, 0.2, progress) for progress in (0, 0.5, 1, 3)] == pytest.approx([0.8, 0.4, 0.2, 0.2])
    assert falling_target(0.1, 0.2, 0.0) == 0.2, "a start below the budget may grow to it at once"
