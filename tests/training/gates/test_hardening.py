"""Where gates start, and how they become a plan: within the budget, little of it unused, nothing dead in it."""

import pytest
import torch
from pydantic import ValidationError

from checkpoints.build import dense_config
from modeling.layer_plan import LayerPlan
from modeling.visual_gates import GATE_KINDS
from modeling.visual_plan import VisualPlan
from tests.training.planners.tiny_calibration import NUM_LAYERS, NUM_NEURONS, NUM_UNITS, tiny_calibration, tiny_config
from training.gates.hardening import harden, opened_in_order, without_dead_work
from training.gates.start import base_plan, check_budget, gates_at_start
from training.measure.latency import LatencyTable
from training.measure.price import PlanPrice
from training.recipe.gates import GateSettings

CONFIG, CALIBRATION, DENSE = tiny_config(), tiny_calibration(), VisualPlan.dense(NUM_LAYERS)


def settings(share=0.12, **changes) -> GateSettings:
    return GateSettings(
        **{"planner": "gates", "budget": {"visual_flops": share}, "steps": 1, "ffn_blocks": 8} | changes
    )


def start_gates(start=DENSE, **changes):
    return gates_at_start(CONFIG, CALIBRATION, start, settings(**changes))


def opened_at_start(gates):
    return {name: value.detach() > 0 for name, value in gates.log_alpha.items()}


def shuffled(gates, seed):
    """The gates as if learned: any log alpha."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in gates.parameters():
        parameter.data = 4 * torch.randn(parameter.shape, generator=generator)
    return gates


def test_gates_open_what_the_start_serves():
    start = (
        DENSE.replace(1, attend=False)
        .replace(2, heads=(0, 3))
        .replace(3, ffn=0)
        .replace(4, read=False)
        .replace(6, tokens=0.0)
    )
    gates = start_gates(start)
    again = gates.plan(opened_at_start(gates), base_plan(start))
    sizes = {"num_units": NUM_UNITS, "intermediate_size": NUM_NEURONS}
    assert again.live(**sizes) == start.live(**sizes)


def test_blocks_hold_neurons_of_like_importance():
    gates = start_gates()
    for layer in range(NUM_LAYERS):
        importance = CALIBRATION.neuron_importance[layer]
        sorted_blocks = gates.block[layer][importance.argsort(descending=True)]
        assert torch.equal(sorted_blocks, sorted_blocks.sort().values)
        assert gates.block[layer].bincount().tolist() == [NUM_NEURONS // 8] * 8


def test_a_start_with_a_part_of_the_tokens_is_refused():
    with pytest.raises(ValueError, match="layer 2: tokens: got 0.5"):
        start_gates(DENSE.replace(2, tokens=0.5))


@pytest.mark.parametrize("changes", [{"read": False}, {"heads": 2}, {"tokens": 0.0}])
def test_a_start_that_servers_cannot_execute_is_refused_where_servable_is_asked_for(changes):
    start_gates(DENSE.replace(2, attend=False, ffn=4), profile="servable")
    with pytest.raises(ValueError, match=f"plan.start: layer {NUM_LAYERS - 1}: shuts more than"):
        start_gates(DENSE.replace(NUM_LAYERS - 1, **changes), profile="servable")


@pytest.mark.parametrize(
    "changes, fixed",
    [({"profile": "servable"}, {"read", "heads"}), ({"off": ["attend", "heads"]}, {"attend", "heads"})],
)
def test_kinds_of_gates_that_are_not_learned_stay_as_they_start(changes, fixed):
    gates = shuffled(start_gates(**changes), seed=0)
    assert {name for name in gates.log_alpha if not gates.learned(name).any()} == fixed
    cost = PlanPrice(CONFIG, settings(0.3).budget.measure)
    plan = harden(gates, DENSE, cost, settings(0.3, **changes), answer_kl=lambda plan: 0.0, seed=0)
    if "read" in fixed:
        assert all(layer.read and layer.heads is None for layer in plan.layers), "servable: every layer is read in full"


def plainly_opened(gates, scores, base, price, share):
    """Opens gates by falling score, and prices the whole plan at every step."""
    opened = {name: gates.fixed_open(name) for name in GATE_KINDS}
    plan = gates.plan(opened, base)
    places = [(name, place) for name in GATE_KINDS for place in map(tuple, gates.learned(name).nonzero().tolist())]
    for name, place in sorted(places, key=lambda at: -float(scores[at[0]][at[1]])):
        opened[name][place] = True
        wider = gates.plan(opened, base)
        if price(wider) <= share:
            plan = wider
        else:
            opened[name][place] = False
    return plan


LATENCY = LatencyTable(
    dense=10.0,
    text=1.0,
    keys=((0, 0.0), (2, 0.3), (NUM_UNITS, 0.4)),
    queries=((0, 0.0), (NUM_UNITS, 0.31)),
    neurons=((0, 0.0), (NUM_NEURONS // 2, 0.17), (NUM_NEURONS, 0.3)),
)
MEASURES = ["visual_flops", "model_flops", "kv_bytes", "latency"]


@pytest.mark.parametrize("base", [DENSE, VisualPlan((LayerPlan(radius=1),) * NUM_LAYERS)], ids=["dense", "radius"])
@pytest.mark.parametrize("profile", ["max", "servable"])
@pytest.mark.parametrize("measure", MEASURES)
def test_steps_priced_from_counts_open_the_same_gates_as_whole_plans(measure, profile, base):
    price, text_alone = PlanPrice(CONFIG, measure, LATENCY), VisualPlan((LayerPlan(tokens=0.0),) * NUM_LAYERS)
    seen = set()
    for seed in range(2):
        gates = shuffled(start_gates(DENSE, profile=profile), seed)
        scores = {name: value.detach() for name, value in gates.log_alpha.items()}
        for part in (0.0, 0.05, 0.4, 1.0):
            share = price(text_alone) + part * (1 - price(text_alone))
            plan = opened_in_order(gates, scores, base, price, share)
            assert plan == plainly_opened(gates, scores, base, price, share)
            seen.add(plan)
    assert len(seen) > 1


@pytest.mark.parametrize("share", [0.02, 0.04, 0.12, 0.25, 0.6])
@pytest.mark.parametrize("seed", range(6))
def test_the_budget_is_never_exceeded_and_mostly_used(seed, share):
    gates, cost = shuffled(start_gates(share=share), seed), PlanPrice(CONFIG, settings(share).budget.measure)
    plans = []

    def answer_kl(plan):
        plans.append(plan)
        return torch.rand(()).item()

    chosen = harden(gates, DENSE, cost, settings(share, draws=5), answer_kl, seed)
    assert chosen in plans and len(plans) > 1
    for plan in plans:
        assert cost(plan) <= share
    if share >= 0.12:
        assert cost(chosen) >= 0.95 * share


def test_the_plan_of_least_kl_is_taken():
    gates, cost = shuffled(start_gates(), 1), PlanPrice(CONFIG, settings().budget.measure)
    seen = {}

    def answer_kl(plan):
        return seen.setdefault(plan, float((7 * len(seen)) % 5))

    chosen = harden(gates, DENSE, cost, settings(draws=8), answer_kl, seed=0)
    assert seen[chosen] == min(seen.values()) and len(seen) > 3


@pytest.mark.parametrize(
    "changes", [{"budget": {"model_flops": 0.01}}, {"profile": "servable", "budget": {"visual_flops": 0.05}}]
)
def test_a_budget_that_no_gate_can_meet_is_refused(changes):
    asked = settings(**changes)
    gates, cost = gates_at_start(CONFIG, CALIBRATION, DENSE, asked), PlanPrice(CONFIG, asked.budget.measure)
    with pytest.raises(ValueError, match="allowed: 0.[1-9].* or more"):
        check_budget(gates, DENSE, cost, asked.budget)
    asked = settings(**(changes | {"budget": {asked.budget.measure: 0.9}}))
    check_budget(gates, DENSE, PlanPrice(CONFIG, asked.budget.measure), asked.budget)


def test_dead_work_is_not_written_down_and_changes_nothing():
    plan = DENSE.replace(2, read=False, attend=False).replace(4, heads=0).replace(5, tokens=0.0)
    clean = without_dead_work(plan, start_gates())
    sizes = {"num_units": NUM_UNITS, "intermediate_size": NUM_NEURONS}
    assert clean.live(**sizes) == plan.live(**sizes)
    assert clean.layers[2] == LayerPlan(attend=False, read=False, heads=0), "units that neither read nor attend"
    assert clean.layers[3] == LayerPlan(attend=False, ffn=0), "the last layer that is read"


def test_impossible_settings_are_refused():
    for wrong in ({"off": ["noses"]}, {"profile": "fast"}, {"steps": 0}, {"share": 0.0}):
        with pytest.raises(ValidationError):
            settings(**wrong)


@pytest.mark.slow
def test_hardening_at_the_size_of_7b_prices_few_layers():
    """`pytest --durations` tells the seconds. Pricing whole plans would take 32 layers for each of 1,632 gates."""
    config = dense_config("recipes/shapes/llava-1.5-7b.json")
    text = config.text_config
    sizes = {"num_layers": text.num_hidden_layers, "num_units": text.num_key_value_heads}
    calibration = tiny_calibration(**sizes, num_neurons=text.intermediate_size)
    asked = GateSettings(planner="gates", budget={"visual_flops": 0.3}, steps=1)
    dense = VisualPlan.dense(text.num_hidden_layers)
    gates = shuffled(gates_at_start(config, calibration, dense, asked), 0)
    price, plans = CountingPrice(config), []
    harden(gates, dense, price, asked, lambda plan: float(len(plans.append(plan) or plans)), seed=0)
    assert len(plans) == asked.draws + 1 and all(price(plan) <= 0.3 for plan in plans)
    num_gates = sum(int(gates.learned(name).sum()) for name in GATE_KINDS)
    assert price.num_layers < 2 * len(plans) * num_gates


class CountingPrice(PlanPrice):
    num_layers = 0

    def layer_cost(self, layer):
        self.num_layers += 1
        return super().layer_cost(layer)
