"""The greedy planner meets its budget, finds planted structure, and does better than chance."""

import pytest
import torch

from modeling.layer_plan import LayerPlan
from modeling.visual_plan import VisualPlan
from tests.tiny_student import tiny_batch, tiny_student
from training.measure.answer_kl import AnswerKL
from training.measure.calibration import calibrate
from training.planners import FileSettings, GreedySettings, RandomSettings, YopoSettings, find_plan
from training.planners.tools.budget import PlanPrice

NUM_LAYERS = 4
BATCHES = [tiny_batch((1, 0, 1), seed=1), tiny_batch((2, 1), seed=2)]


def greedy(budget: float) -> GreedySettings:
    return GreedySettings(planner="greedy", budget={"visual_flops": budget})


@pytest.fixture(scope="module")
def student():
    """Layer 1 writes nothing to any row, and layer 2's FFN next to nothing."""
    model = tiny_student(NUM_LAYERS, num_kv_heads=4)
    layers = model.model.language_model.layers
    with torch.no_grad():
        layers[1].self_attn.o_proj.weight.zero_()
        layers[1].mlp.down_proj.weight.zero_()
        layers[2].mlp.down_proj.weight.mul_(1e-4)
    return model


@pytest.fixture(scope="module")
def calibration(student, tmp_path_factory):
    return calibrate(student, BATCHES, tmp_path_factory.mktemp("calibration"))


@pytest.mark.parametrize("budget", [0.02, 0.12, 0.4])
def test_meets_the_budget_and_beats_chance(student, calibration, budget):
    price, answer_kl = PlanPrice(student.config), AnswerKL(student, BATCHES)
    plan = find_plan(student, BATCHES, calibration, greedy(budget))
    assert price(plan) <= budget
    by_chance = [
        find_plan(
            student, BATCHES, calibration, RandomSettings(planner="random", budget=greedy(budget).budget, seed=seed)
        )
        for seed in range(3)
    ]
    # Within the smallest budget there is little to choose from: chance may find the same plan.
    assert answer_kl(plan) <= min(map(answer_kl, by_chance))
    assert answer_kl(plan) < sum(map(answer_kl, by_chance)) / len(by_chance)
    yopo = find_plan(student, BATCHES, calibration, YopoSettings(planner="yopo", budget=greedy(budget).budget))
    assert answer_kl(plan) <= answer_kl(yopo)


def test_useless_work_goes_first(student, calibration):
    price, answer_kl = PlanPrice(student.config), AnswerKL(student, BATCHES)
    useless = VisualPlan.dense(NUM_LAYERS).replace(1, attend=False, ffn=0, read=False).replace(2, ffn=0)
    plan = find_plan(student, BATCHES, calibration, greedy(price(useless)))
    assert price(plan) <= price(useless)
    live = plan.live(4, 24)
    assert not live[1].attend and not live[1].read and live[1].num_ffn == 0 and live[2].num_ffn == 0
    assert live[0].attend and live[0].num_ffn == 24
    assert answer_kl(plan) < 1e-4


def test_dead_work_is_free(student, calibration):
    # What the last layer would do to visual tokens is never executed: a budget that leaves just that out changes nothing.
    price, answer_kl = PlanPrice(student.config), AnswerKL(student, BATCHES)
    dense = VisualPlan.dense(NUM_LAYERS)
    assert find_plan(student, BATCHES, calibration, greedy(price(dense))) == dense
    assert price(dense) < 1
    assert answer_kl(dense.replace(NUM_LAYERS - 1, attend=False, ffn=0)) == 0


def test_nothing_is_left_of_no_budget(student, calibration):
    plan = find_plan(student, BATCHES, calibration, greedy(0.0))
    assert plan.layers == (LayerPlan(tokens=0.0),) * NUM_LAYERS


def test_plan_in_force_is_left_alone_and_the_search_repeats(student, calibration):
    before = student.visual_plan
    first = find_plan(student, BATCHES, calibration, greedy(0.3))
    assert find_plan(student, BATCHES, calibration, greedy(0.3)) == first
    assert student.visual_plan == before


def test_file_planner(student, calibration, tmp_path):
    plan = VisualPlan.dense(NUM_LAYERS).replace(2, heads=2, ffn=3)
    plan.save(tmp_path / "plan.json")
    assert find_plan(student, [], calibration, FileSettings(planner="file", path=tmp_path / "plan.json")) == plan
    VisualPlan.dense(NUM_LAYERS + 1).save(tmp_path / "deeper.json")
    for name, message in (
        ("missing.json", "no such plan file"),
        ("deeper.json", "deeper.json: visual plan: got 5 layers"),
    ):
        with pytest.raises(ValueError, match=message):
            find_plan(student, [], calibration, FileSettings(planner="file", path=tmp_path / name))
