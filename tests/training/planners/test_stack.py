"""Stacked plans: each field means what it should, and plans may be stacked in any order."""

import random
from dataclasses import replace
from itertools import permutations

import pytest

from modeling.layer_plan import LayerPlan, Rank, num_served
from modeling.visual_plan import VisualPlan
from tests.modeling.random_plans import random_plan
from tests.tiny_student import tiny_batch, tiny_student
from tests.training.planners.tiny_calibration import tiny_calibration, tiny_config, tiny_search
from training.measure.calibration import calibrate
from training.measure.price import PlanPrice
from training.planners.stack import StackPlanner, stacked
from training.planners.tools.search import Search
from training.planners.vica import VicaPlanner

LAYERS, UNITS, NEURONS = 3, 4, 12
DENSE = VisualPlan.dense(LAYERS)
INSTRUCTION = Rank(rows="instruction")


def drawn(seed: int) -> VisualPlan:
    """Returns a random plan whose units are lists. With counts beside lists, most pairs would be refused."""

    def listed(units):
        return tuple(range(units)) if isinstance(units, int) and units else units

    plan = random_plan(seed, LAYERS, UNITS, NEURONS)
    return VisualPlan(tuple(replace(layer, heads=listed(layer.heads), ffn=listed(layer.ffn)) for layer in plan.layers))


def counted(seed: int) -> VisualPlan:
    """Returns a random plan whose units are counts."""
    plan = random_plan(seed, LAYERS, UNITS, NEURONS)
    return VisualPlan(
        tuple(
            replace(
                layer,
                heads=layer.heads and num_served(layer.heads, UNITS),
                ffn=layer.ffn and num_served(layer.ffn, NEURONS),
            )
            for layer in plan.layers
        )
    )


def attempted(*plans: VisualPlan) -> VisualPlan | None:
    """Returns the stacked plan, or None if it is refused."""
    try:
        return stacked(plans)
    except ValueError:
        return None


def nested(first: VisualPlan, second: VisualPlan, third: VisualPlan) -> VisualPlan | None:
    inner = attempted(first, second)
    return None if inner is None else attempted(inner, third)


@pytest.mark.parametrize("draw", [drawn, counted, lambda seed: (drawn, counted)[seed % 2](seed)])
def test_the_laws_hold_on_random_plans(draw):
    agreed = refused = 0
    for seed in range(1500):
        of_seed = random.Random(seed)
        plans = [draw(of_seed.randrange(60)) for _ in range(3)]
        first, second, _ = plans
        alone = stacked([first])
        assert (
            stacked([alone]) == alone == stacked([first, DENSE]) == stacked([DENSE, first]) == stacked([first, first])
        )
        assert attempted(first, second) == attempted(second, first)
        flat = attempted(*plans)
        groupings = [nested(*order) for order in permutations(plans)]
        # A grouping may be refused although a third plan would settle the disagreement. It never gives another plan.
        assert all(grouping in (flat, None) for grouping in groupings)
        agreed += flat is not None and None not in groupings
        refused += flat is None
    assert agreed > 50 and refused > 50


def test_a_plan_alone_means_what_it_meant():
    """Stacking one plan only sorts its lists, and leaves out rankings where nothing is ranked."""
    for seed in range(60):
        plan = drawn(seed)
        for live, other in zip(plan.live(UNITS, NEURONS), stacked([plan]).live(UNITS, NEURONS), strict=True):
            units = [
                frozenset(range(each) if isinstance(each, int) else each)
                for each in (live.heads, other.heads, live.ffn, other.ffn)
            ]
            assert units[0] == units[1] and units[2] == units[3]
            assert live.rank == other.rank or not live.keep
            same = {"heads": 0, "ffn": 0, "rank": Rank()}
            assert replace(live, **same) == replace(other, **same)


def test_each_field_of_random_pairs():
    def units(given, total):
        return set(range(total) if given is None else range(given) if isinstance(given, int) else given)

    checked = 0
    for seed in range(400):
        pair = [drawn(seed), drawn(seed + 1000)]
        found = attempted(*pair)
        if found is None:
            continue
        checked += 1
        for layer, first, second in zip(found.layers, *(plan.layers for plan in pair), strict=True):
            assert layer.tokens == min(first.tokens, second.tokens)
            assert layer.attend == (first.attend and second.attend) and layer.read == (first.read and second.read)
            assert units(layer.heads, UNITS) == units(first.heads, UNITS) & units(second.heads, UNITS)
            assert units(layer.ffn, NEURONS) == units(first.ffn, NEURONS) & units(second.ffn, NEURONS)
            radii = [99 if each.radius is None else each.radius for each in (first, second)]
            assert (99 if layer.radius is None else layer.radius) == min(radii)
            assert layer.bidirectional == (first, second)[radii.index(min(radii))].bidirectional
    assert checked > 40


def test_survivors_are_ranked_as_in_the_plan_that_falls():
    early = DENSE.replace(1, tokens=0.5, rank=INSTRUCTION)
    late = DENSE.replace(2, tokens=0.25)
    both = stacked([early, late])
    assert both == DENSE.replace(1, tokens=0.5, rank=INSTRUCTION).replace(2, tokens=0.25)
    # A plan that falls to no fewer tokens than are left anyway decides nothing.
    assert stacked([early, DENSE.replace(2, tokens=0.5)]) == early
    assert stacked([early, DENSE.replace(1, tokens=0.25)]) == DENSE.replace(1, tokens=0.25)
    # Where nothing is ranked there is nothing to disagree on.
    assert stacked([DENSE.replace(1, rank=INSTRUCTION), DENSE]) == DENSE
    withdrawn = DENSE.replace(1, tokens=0.0)
    assert stacked([withdrawn, withdrawn.replace(1, rank=INSTRUCTION)]) == withdrawn


REFUSED = {
    "rank: got Rank": (DENSE.replace(1, tokens=0.5), DENSE.replace(1, tokens=0.5, rank=INSTRUCTION)),
    "bidirectional: got True and False": (DENSE.replace(1, radius=2, bidirectional=True), DENSE.replace(1, radius=2)),
    r"heads: got a count \(3\) and a list": (DENSE.replace(1, heads=3), DENSE.replace(1, heads=(0, 1))),
    r"ffn: got a count \(3\) and a list": (DENSE.replace(1, ffn=(5,)), DENSE.replace(1, ffn=3)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_plans_disagree_on_is_refused(message):
    with pytest.raises(ValueError, match=f"^plan.of: layer 1: {message}.*, allowed: "):
        stacked(REFUSED[message])


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="plan.of: got plans of 3 and 4 layers, allowed: of one model"):
        stacked([DENSE, VisualPlan.dense(4)])
    with pytest.raises(
        ValueError, match="layer 2: tokens falls to 0.5.*, but text does not read visual tokens in layer 1"
    ):
        stacked([DENSE.replace(2, tokens=0.5), DENSE.replace(1, read=False)])


def test_none_served_goes_with_counts_and_lists():
    frozen = DENSE.replace(1, ffn=0)
    assert stacked([frozen, DENSE.replace(1, ffn=(2, 1))]) == stacked([frozen, DENSE.replace(1, ffn=7)]) == frozen
    assert stacked([DENSE.replace(1, heads=(2,)), DENSE.replace(1, heads=(1, 3))]).layers[1].heads == 0


def test_the_planner_stacks_the_plans_that_its_planners_find(tmp_path):
    model, batches = tiny_student(4), [tiny_batch((1, 2), seed=1), tiny_batch((2, 1), seed=2)]
    calibration = calibrate(model, batches, tmp_path)
    VisualPlan.dense(4).replace(1, radius=1).save(tmp_path / "near.json")
    planners = [
        {"planner": "fastv", "keep": 0.5},
        {
            "planner": "yopo",
            "withdraw_from": 4,
            "heads_kept": 1,
            "ffn_kept": 0.5,
            "radius": None,
            "bidirectional": False,
        },
        {"planner": "file", "path": tmp_path / "near.json"},
    ]
    settings = StackPlanner(planner="stack", of=planners)
    found = [planner.find(Search(model, batches, calibration)) for planner in settings.of]
    plan = settings.find(Search(model, batches, calibration))
    assert plan == stacked(found)
    assert [layer.tokens for layer in plan.layers] == [1, 1, 0.5, 0.5] and plan.layers[1].radius == 1
    assert all(len(layer.ffn) == 12 for layer in plan.layers)
    price = PlanPrice(model.config)
    assert price(plan) < min(map(price, found))
    model.set_visual_plan(plan)


def test_schedules_narrow_what_other_planners_read():
    config, calibration = tiny_config(), tiny_calibration()
    vica = VicaPlanner(planner="vica", budget={"visual_flops": 1.0}).find(tiny_search(config, calibration))
    plan = stacked([vica, VisualPlan.dense(8).replace(2, tokens=0.5)])
    assert [layer.tokens for layer in plan.layers] == [1, 1] + [0.5] * 6
    assert plan.layers[2] == LayerPlan(tokens=0.5, attend=False, ffn=0)
