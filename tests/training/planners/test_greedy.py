"""The greedy planner meets its budget, finds planted structure, and does better than chance."""

from typing import ClassVar

import pytest
import torch

import training.planners.greedy
from modeling.layer_plan import LayerPlan
from modeling.visual_plan import VisualPlan
from tests.tiny_student import tiny_batch, tiny_student
from training.measure.answer_kl import AnswerKL
from training.measure.calibration import calibrate
from training.measure.price import PlanPrice
from training.planners.file import FilePlanner
from training.planners.greedy import GreedyPlanner
from training.planners.random_plan import RandomPlanner
from training.planners.tools.moves import Moves
from training.planners.tools.search import Search
from training.planners.yopo import YopoPlanner

NUM_LAYERS = 4
BATCHES = [tiny_batch((1, 0, 1), seed=1), tiny_batch((2, 1), seed=2)]


def greedy(budget: float) -> GreedyPlanner:
    return GreedyPlanner(planner="greedy", budget={"visual_flops": budget})


@pytest.fixture(scope="module")
def student():
    """A model whose layer 1 writes nothing to any row, and whose FFN in layer 2 writes next to nothing."""
    model = tiny_student(NUM_LAYERS, num_kv_heads=4, seed=3)
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


@pytest.mark.parametrize("measure", ["visual_flops", "model_flops", "kv_bytes"])
def test_plans_are_priced_from_their_layers(student, calibration, measure):
    """The price in a walk is that of the plan with its units, to the last bit."""
    moves, price = Moves(student.config, calibration), PlanPrice(student.config, measure)
    for start in (moves.dense, moves.all_frozen):
        once = [start, *(plan for _, plan in moves.closings(start))]
        twice = [plan for before in once for _, plan in (*moves.closings(before), *moves.openings(before))]
        for plan in (*once, *twice):
            assert price(plan) == price(moves.with_units(plan))


class Bar:
    """What a bar was told."""

    made: ClassVar[list] = []

    def __init__(self, total: int, **_):
        self.total, self.n, self.steps, self.text = total, 0, [], ""
        self.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, step: float) -> None:
        self.n += step
        self.steps.append(step)

    def set_postfix_str(self, text: str) -> None:
        self.text = text


def test_the_bar_names_the_measure_and_ends_at_its_total(student, calibration, monkeypatch):
    monkeypatch.setattr(training.planners.greedy, "Progress", Bar)
    planner = GreedyPlanner(planner="greedy", budget={"kv_bytes": 0.92})
    search = Search(student, BATCHES, calibration)
    plan = planner.find(search)
    (bar,) = Bar.made
    assert bar.n == bar.total == 100 and min(bar.steps) >= 0
    assert len({step for step in bar.steps if step}) > 1, "it moves in more than one step"
    assert bar.text.startswith("kv_bytes ") and "of 92.0%" in bar.text
    assert bar.text.endswith(f"{search.answer_kl.num_evaluations} plans")
    assert PlanPrice(student.config, "kv_bytes")(plan) <= 0.92


class Killed(Exception):
    pass


def evaluations_until(monkeypatch, kill_after: int | None) -> list:
    """Counts the plans that are run from now on, and kills the search at the one after `kill_after`."""
    run, distance = [], AnswerKL.distance

    def counted(self, plan, gates=None):
        if len(run) == kill_after:
            raise Killed
        run.append(plan)
        return distance(self, plan, gates)

    monkeypatch.setattr(AnswerKL, "distance", counted)
    return run


def test_a_killed_search_goes_on(student, calibration, monkeypatch, tmp_path):
    def run_plans(kill_after: int | None, batches=BATCHES, folder=tmp_path) -> tuple[list, VisualPlan | None]:
        with monkeypatch.context() as patch:
            run = evaluations_until(patch, kill_after)
            try:
                return run, greedy(0.4).find(Search(student, batches, calibration, folder=folder))
            except Killed:
                return run, None

    whole, plan = run_plans(None, folder=None)
    done = []
    for kill_after in (1, 3, 10):
        run, found = run_plans(kill_after)
        assert len(run) == kill_after and found is None
        done += run
    run, found = run_plans(None)
    assert found == plan
    assert done + run == whole, "each plan is run once, in the same order"
    assert run_plans(None) == ([], plan)
    search = Search(student, BATCHES, calibration, folder=tmp_path)
    assert search.subsearch("part").subject is search.subject, "weights are read once"
    assert len(run_plans(1, batches=BATCHES[:1])[0]) == 1, "other data are measured anew"


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
