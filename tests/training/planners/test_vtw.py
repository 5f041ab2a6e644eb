"""VTW's curve is the answer KL of the plans themselves, and its layer is the one that the rule names."""

from itertools import product

import pytest
import torch
from pydantic import ValidationError

from modeling.visual_plan import VisualPlan
from tests.families.family import COLLATORS
from tests.families.internvl import INTERNVL
from tests.families.llava_next import LLAVA_NEXT
from tests.families.qwen2_vl import QWEN2_VL
from tests.tiny_student import single_samples, tiny_batch, tiny_student
from training.measure.answer_kl import AnswerKL
from training.measure.price import PlanPrice
from training.planners.tools.search import Search
from training.planners.tools.withdrawal import own_withdrawals, withdrawal_curve
from training.planners.vtw import VtwPlanner

NUM_LAYERS = 5
DENSE = VisualPlan.dense(NUM_LAYERS)
BATCHES = [tiny_batch((1, 0, 2), seed=1), tiny_batch((0,), seed=2), tiny_batch((1, 1, 1), seed=3, padding_side="left")]
MODEL = tiny_student(NUM_LAYERS, seed=23)  # withdrawing at layer 1 costs it less than at layer 2


def withdrawn(layer: int, num_layers: int = NUM_LAYERS) -> VisualPlan:
    dense = VisualPlan.dense(num_layers)
    return dense if layer == num_layers else dense.replace(layer, tokens=0.0)


def curve(at="answers", hold_out=0.0, model=MODEL, batches=BATCHES):
    measured = own_withdrawals(model, list(enumerate(batches)), at)
    return withdrawal_curve([withdrawals for _, withdrawals in measured], hold_out)


def vtw(**settings) -> VisualPlan:
    return VtwPlanner(planner="vtw", **settings).find(Search(MODEL, BATCHES, None))


@pytest.mark.parametrize("family", [LLAVA_NEXT[0], QWEN2_VL, INTERNVL[0]], ids=lambda family: family.name)
def test_the_curve_is_the_answer_kl_of_the_plans_in_every_family(family):
    model, batches = family.sparse(), [COLLATORS["left"](family.samples(0)), COLLATORS["right"](family.samples(1))]
    answer_kl, num_layers = AnswerKL(model, batches), model.config.text_config.num_hidden_layers
    points = curve(model=model, batches=batches)
    assert [point["layer"] for point in points] == list(range(1, num_layers + 1))
    for point in points:
        assert point["kl"] == pytest.approx(answer_kl(withdrawn(point["layer"], num_layers)), rel=1e-4, abs=1e-6)
        assert point["kl_hold_out"] is None
    assert points[0]["kl"] > 1e-3


def test_samples_are_held_out_at_even_distances():
    batches = [tiny_batch((1, 1, 1), seed=3), tiny_batch((1, 0, 2), seed=1)]
    samples = [
        sample for batch in batches for sample in single_samples(batch) if "pixel_values" in sample
    ]  # five of them
    chosen, held = (AnswerKL(MODEL, [samples[number] for number in numbers]) for numbers in ((0, 2, 4), (1, 3)))
    for point in curve(hold_out=0.5, batches=batches):
        plan = withdrawn(point["layer"])
        assert point["kl"] == pytest.approx(chosen(plan), rel=1e-4, abs=1e-6)
        assert point["kl_hold_out"] == pytest.approx(held(plan), rel=1e-4, abs=1e-6)
        assert point["kl"] != pytest.approx(held(plan), rel=1e-2) or plan == DENSE


def test_the_published_measure_is_the_reverse_kl_at_the_last_token_of_the_prompt():
    for point in curve(at="prompt"):
        divergences = []
        for sample in (single for batch in BATCHES for single in single_samples(batch) if "pixel_values" in single):
            labels = sample.pop("labels")[0]
            last = int((labels != -100).nonzero()[0]) - 1
            rows = []
            for plan in (DENSE, withdrawn(point["layer"])):
                with torch.no_grad(), MODEL.use_plan(plan):
                    rows.append(MODEL(**sample).logits[0, last].double().log_softmax(-1))
            dense, sparse = rows
            divergences.append(float((sparse.exp() * (sparse - dense)).sum()))
        assert point["kl"] == pytest.approx(sum(divergences) / len(divergences), rel=1e-4, abs=1e-6)


def test_fewer_layers_are_run_than_by_a_forward_per_layer():
    rows = {"text alone": 0, "all": 0}

    def count(_, args):
        rows["text alone" if args[1] is None else "all"] += 1

    hooks = [layer.register_forward_pre_hook(count) for layer in MODEL.model.language_model.layers]
    curve(batches=BATCHES[:1])
    for hook in hooks:
        hook.remove()
    assert rows == {"all": NUM_LAYERS, "text alone": NUM_LAYERS * (NUM_LAYERS - 1) // 2}


def test_the_layer_is_the_first_within_the_tolerance_or_the_first_from_which_all_are():
    found = set()
    for at, hold_out in product(("answers", "prompt"), (0.0, 0.5)):
        points = [point["kl"] for point in curve(at, hold_out)]
        for tolerance in (0.0, *points):
            first = next(layer for layer, kl in enumerate(points, start=1) if kl <= tolerance)
            above = [layer for layer, kl in enumerate(points, start=1) if kl > tolerance]
            common = {"tolerance": tolerance, "at": at, "hold_out": hold_out}
            assert vtw(**common, for_all_later=False) == withdrawn(first)
            assert vtw(**common) == withdrawn(max(above, default=0) + 1)
            found.add((first, max(above, default=0) + 1))
    assert any(first != later for first, later in found), "a curve that is not monotone tells the rules apart"
    assert (NUM_LAYERS, NUM_LAYERS) in found and (1, 1) in found


def test_what_was_found_is_said(capsys):
    vtw(tolerance=1e9)
    output = capsys.readouterr().out
    assert "vtw plan: text alone from layer 1 of 5, KL " in output and "on held-out samples" in output
    vtw(tolerance=0.0)
    assert "vtw plan: dense, no withdrawal is within the tolerance" in capsys.readouterr().out


def test_a_budget_takes_the_latest_withdrawal_without_measuring():
    price = PlanPrice(MODEL.config)
    for budget in (0.1, 0.3, 0.5, 0.8, 1.0):
        fitting = [layer for layer in range(1, NUM_LAYERS + 1) if price(withdrawn(layer)) <= budget]
        plan = VtwPlanner(planner="vtw", budget={"visual_flops": budget}).find(Search(MODEL, [], None))
        assert plan == withdrawn(max(fitting))
    with pytest.raises(
        ValueError, match=r"plan.budget.visual_flops: got 0.01, allowed: 0\.\d+ or more, the cost of all tok"
    ):
        vtw(budget={"visual_flops": 0.01})


def test_the_plan_in_force_is_left_alone():
    model = tiny_student(NUM_LAYERS, seed=23)
    model.set_visual_plan(DENSE.replace(1, read=False))
    assert curve(model=model) == curve()
    assert model.visual_plan == DENSE.replace(1, read=False)
    assert not any(layer._forward_pre_hooks for layer in model.model.language_model.layers)


def test_data_or_settings_that_say_nothing_are_refused():
    with pytest.raises(ValueError, match=r"plan.hold_out: got 0.25 of 1 samples, allowed: answers on both sides"):
        curve(hold_out=0.25, batches=[tiny_batch((1,))])
    with pytest.raises(ValueError, match="no supervised answer in a sample with an image"):
        curve(batches=[tiny_batch((0, 0))])
    budget = {"visual_flops": 0.5}
    for wrong in (
        {}, {"tolerance": 0.1, "budget": budget}, {"tolerance": -1}, {"tolerance": 0.1, "at": "question"},
        {"tolerance": 0.1, "hold_out": 1.0}, {"budget": budget, "hold_out": 0.5}, {"budget": budget, "at": "prompt"},
    ):  # fmt: skip
        with pytest.raises(ValidationError):
            VtwPlanner(planner="vtw", **wrong)
