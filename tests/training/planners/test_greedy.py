"""The greedy planner meets its budget, finds planted structure, and does better than chance."""

import pytest
import torch

from modeling.layer_plan import LayerPlan
from modeling.visual_plan import VisualPlan
from tests.tiny_student import tiny_batch, tiny_student
from training.measure.answer_kl import AnswerKL
from training.measure.calibration import calibrate
from training.measure.price import PlanPrice
from training.planners.file import FilePlanner
from training.planners.greedy import GreedyPlanner
from training.planners.random_plan import RandomPlanner
from training.planners.tools.search import Search
from training.planners.yopo import YopoPlanner

NUM_LAYERS = 4
BATCHES = [tiny_batch((1, 0, 1), seed=1), tiny_batch((2, 1), seed=2)]


def greedy(budget: float) -> GreedyPlanner:
    return GreedyPlanner(planner="greedy", budget={"visual_flops": budget})


@pytest.fixture(scope="module")
def student():
    """A model whose layer 1 writes nothing to any row, and whose FFN in layer 2 writes next to nothing."""
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
    plan = greedy(budget).find(Search(student, BATCHES, calibration))
    assert price(plan) <= budget
    by_chance = [
        RandomPlanner(planner="random", budget=greedy(budget).budget, seed=seed).find(
            Search(student, BATCHES, calibration)
        )
        for seed in range(3)
    ]
    # Within the smallest budget there is little to choose from: chance may find the same plan.
    assert answer_kl(plan) <= min(map(answer_kl, by_chance))
    assert answer_kl(plan) < sum(map(answer_kl, by_chance)) / len(by_chance)
    yopo = YopoPlanner(planner="yopo", budget=greedy(budget).budget).find(Search(student, BATCHES, calibration))
    assert answer_kl(plan) <= answer_kl(yopo)


def test_useless_work_goes_first(student, calibration):
    price, answer_kl = PlanPrice(student.config), AnswerKL(student, BATCHES)
    useless = VisualPlan.dense(NUM_LAYERS).replace(1, attend=False, ffn=0, read=False).replace(2, ffn=0)
    plan = greedy(price(useless)).find(Search(student, BATCHES, calibration))
    assert price(plan) <= price(useless)
    live = plan.live(4, 24)
    assert not live[1].attend and not live[1].read and live[1].num_ffn == 0 and live[2].num_ffn == 0
    assert live[0].attend and live[0].num_ffn == 24
    assert answer_kl(plan) < 1e-4


def test_dead_work_is_free(student, calibration):
    # The last layer's visual updates are never executed. A budget that leaves out only these changes nothing.
    price, answer_kl = PlanPrice(student.config), AnswerKL(student, BATCHES)
    dense = VisualPlan.dense(NUM_LAYERS)
    assert greedy(price(dense)).find(Search(student, BATCHES, calibration)) == dense
    assert price(dense) < 1
    assert answer_kl(dense.replace(NUM_LAYERS - 1, attend=False, ffn=0)) == 0


def test_nothing_is_left_of_no_budget(student, calibration):
    plan = greedy(0.0).find(Search(student, BATCHES, calibration))
    assert plan.layers == (LayerPlan(tokens=0.0),) * NUM_LAYERS


def test_plan_in_force_is_left_alone_and_the_search_repeats(student, calibration):
    before = student.visual_plan
    first = greedy(0.3).find(Search(student, BATCHES, calibration))
    assert greedy(0.3).find(Search(student, BATCHES, calibration)) == first
    assert student.visual_plan == before


def test_file_planner(student, calibration, tmp_path):
    plan = VisualPlan.dense(NUM_LAYERS).replace(2, heads=2, ffn=3)
    plan.save(tmp_path / "plan.json")
    assert FilePlanner(planner="file", path=tmp_path / "plan.json").find(Search(student, [], calibration)) == plan
    VisualPlan.dense(NUM_LAYERS + 1).save(tmp_path / "deeper.json")
    for name, message in (
        ("missing.json", "no such plan file"),
        ("deeper.json", "deeper.json: visual plan: got 5 layers"),
    ):
        with pytest.raises(ValueError, match=message):
            FilePlanner(planner="file", path=tmp_path / name).find(Search(student, [], calibration))
