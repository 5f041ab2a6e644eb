"""A planner is one file. A file put into the folder works in recipes, dry runs, searches and frontiers like the others.

Every planner that takes a budget takes one in each measure.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from tests.tiny_student import tiny_batch, tiny_student
from training.measure.budget import Budget
from training.measure.calibration import calibrate
from training.measure.latency import LatencyTable
from training.measure.price import PlanPrice
from training.planners import PLANNERS
from training.planners.planner import BudgetPlanner, SolvingPlanner
from training.planners.tools.search import Search

ROOT = Path(__file__).resolve().parents[3]

ONE_FILE = '''
"""Every second layer is blind, from the first on, until the budget is met."""

from typing import Literal

from modeling.visual_plan import VisualPlan
from training.planners.planner import BudgetPlanner


class EverySecondPlanner(BudgetPlanner):
    planner: Literal["every_second"]
    first: Literal[0, 1] = 0
    seed: int = 0

    def find(self, search):
        price, plan = search.price_within(self.budget), VisualPlan.dense(search.config.text_config.num_hidden_layers)
        for layer in range(self.first, len(plan), 2):
            if price(plan) > self.budget.share:
                plan = plan.replace(layer, attend=False, read=False, ffn=0)
        return plan
'''

STORY = f"""
import importlib.util, sys
sys.path.insert(0, {str(ROOT)!r})
spec = importlib.util.find_spec("training.planners")
spec.submodule_search_locations.append(sys.argv[1])
sys.modules["training.planners"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)

from training.recipe import load_recipe

plan = "plan={{planner: every_second, budget: {{visual_flops: 0.5}}}}"
recipe = load_recipe("debug", [plan, "compare=[]"])
assert "torch" not in sys.modules, "reading the recipe took torch"
try:
    load_recipe("debug", [plan, "plan.frist=1"])
except ValueError as error:
    assert "did you mean plan.first?" in str(error), error
gates = load_recipe("tiny_sparse", ["plan.start={{planner: every_second, budget: {{kv_bytes: 0.7}}}}"]).plan
assert [bound.measure for bound in gates.bounds] == ["visual_flops", "kv_bytes"]
overrides = ["planners={{mine: {{plan: {{planner: every_second, budget: {{visual_flops: 1}}}}, seeds: [3]}}}}"]
for _, budget, seed, student in load_recipe("tiny_frontier", overrides).points():
    assert student.plan.budget.visual_flops == budget and student.plan.seed == seed == 3
overrides = [plan.replace("plan=", "plan={{planner: stack, of: [") + ", {{planner: fastv, keep: 0.5}}]}}"]
assert load_recipe("debug", overrides).plan.of[0].planner == "every_second"

from tests.tiny_student import tiny_batch, tiny_student
from training.planners.tools.search import Search
from training.report.search_plots import search_plot
from training.tasks.dry_run import dry_run
from training.tasks.stages import stages_before_students
from pathlib import Path

dry_run(recipe)
assert [stage.name for stage in stages_before_students(recipe)][:2] == ["data", "plan"], "it reads no statistics"
found = recipe.plan.find(Search(tiny_student(num_layers=4), [tiny_batch((1,))]))
assert [layer.read for layer in found.layers] == [False, True, False, True], found
search_plot(found, 0.6, recipe.plan, Path(sys.argv[1]))
print("all of it")
"""


def run_story(folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", STORY, str(folder)], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_a_planner_is_one_file(tmp_path):
    (tmp_path / "every_second.py").write_text(ONE_FILE)
    done = run_story(tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "all of it"


def test_without_its_file_it_is_unknown(tmp_path):
    done = run_story(tmp_path)
    assert done.returncode != 0 and "plan.planner: got 'every_second'" in done.stderr


# ---- budgets ----

NUM_LAYERS = 6
MODEL, BATCHES = tiny_student(num_layers=NUM_LAYERS, num_kv_heads=2), [tiny_batch((1, 2)), tiny_batch((1,))]
MEASURES = ("visual_flops", "model_flops", "kv_bytes", "latency")
TIMINGS = LatencyTable(
    dense=11.0,
    text=1.0,
    keys=((0, 0.0), (1, 0.2), (2, 0.3)),
    queries=((0, 0.0), (2, 0.7)),
    neurons=((0, 0.0), (MODEL.config.text_config.intermediate_size, 0.8)),
    tokens=((0.0, 0.0), (0.5, 0.6), (1.0, 1.0)),
)
SETTINGS = {
    "fastv": {"layer": 1},
    "himap": {"layers": (1, 3)},
    "p_sigmoid": {"k": 1.0, "full_layers": 1},
    "random": {"seed": 0},
}
BOUNDED = {
    planner.model_fields["planner"].annotation.__args__[0]: planner
    for planner in PLANNERS
    if "budget" in planner.model_fields
}
# Freezing alone leaves every key and value in the cache, and skipping attention leaves every FFN too.
OUT_OF_REACH = {("shortv", "kv_bytes"), ("operator_skip", "kv_bytes"), *(("v_skip", measure) for measure in MEASURES)}


@pytest.fixture(scope="module")
def search(tmp_path_factory) -> Search:
    statistics = calibrate(MODEL, BATCHES, tmp_path_factory.mktemp("calibration"))
    return Search(MODEL, BATCHES, statistics, TIMINGS)


def test_all_planners_but_four_take_a_budget():
    names = {planner.model_fields["planner"].annotation.__args__[0] for planner in PLANNERS}
    assert names - set(BOUNDED) == {"file", "g_search", "keep", "stack"}
    assert all(
        issubclass(planner, BudgetPlanner | SolvingPlanner) or name == "yopo" for name, planner in BOUNDED.items()
    )


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", BOUNDED)
def test_every_planner_meets_a_budget_of_every_measure(search, name, measure):
    price = PlanPrice(MODEL.config, measure, search.latency if measure == "latency" else None)
    text_alone = price(VisualPlan.dense(NUM_LAYERS).replace(0, tokens=0.0))
    share = (price(VisualPlan.dense(NUM_LAYERS)) + text_alone) / 2
    planner = BOUNDED[name](planner=name, budget={measure: share}, **SETTINGS.get(name, {}))
    if (name, measure) in OUT_OF_REACH:
        with pytest.raises(UserError, match=f"plan.budget.{measure}: got .*, allowed: .* or more"):
            planner.find(search)
        return
    plan = planner.find(search)
    plan.check(NUM_LAYERS, 2, MODEL.config.text_config.intermediate_size)
    assert price(plan) <= share
    assert price(plan) > text_alone, "text alone meets every budget"


@pytest.mark.parametrize("name", BOUNDED)
def test_planners_say_whether_they_read_the_kl_without_each_unit(search, name):
    without = replace(search, calibration=replace(search.calibration, unit_kl=None))
    planner = BOUNDED[name](planner=name, budget={"visual_flops": 0.7}, **SETTINGS.get(name, {}))
    if planner.needs_unit_kl:
        with pytest.raises(AttributeError):
            planner.find(without)
    else:
        assert planner.find(without) == planner.find(search)


@pytest.mark.parametrize("measure", ["model_flops", "kv_bytes", "latency"])
@pytest.mark.parametrize("name", BOUNDED)
def test_a_budget_below_the_texts_own_cost_is_refused(search, name, measure):
    planner = BOUNDED[name](planner=name, budget={measure: 0.001}, **SETTINGS.get(name, {}))
    with pytest.raises(UserError, match=f"plan.budget.{measure}: got 0.001, allowed: .* or more"):
        planner.find(search)


def test_budgets_of_latency_wait_for_timings(search):
    """What the config alone would decide is decided only with the timings at hand."""
    planner = BOUNDED["fastv"](planner="fastv", budget={"latency": 0.9}, layer=1)
    assert planner.plan_of_config(MODEL.config) is None and planner.plan_of_same_cost(MODEL.config) is None
    assert planner.plan_of_config(MODEL.config, search.latency) is not None


def test_budgets_know_their_measure():
    assert Budget(latency=0.5).measure == "latency" and Budget(latency=0.5).share == 0.5
