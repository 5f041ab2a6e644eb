"""The frontier: which students it trains, what it leaves, and what its table and intervals say."""

import json

import pytest
import yaml

import training.tasks.frontier
from training.distillation.callbacks import read_metrics
from training.recipe.file import RECIPES, load_recipe
from training.report.frontier_plots import AXES, frontier_families_table, frontier_plot, frontier_table, interval
from training.report.style import png
from training.run import execute
from training.tasks.frontier import stages

PLAN = RECIPES / "plans" / "vica_llava_7b_12.json"

SMALL = {
    "task": "frontier",
    "budgets": [0.5, 0.3],
    "planners": {
        "learned": {
            "plan": {"planner": "gates", "budget": {"visual_flops": 1.0}, "steps": 2, "draws": 2},
            "budgets": [0.3],
            "seeds": [0, 1],
        },
        "vica": {"plan": {"planner": "vica", "budget": {"visual_flops": 1.0}}, "budgets": [0.5]},
        "random": {"plan": {"planner": "random", "budget": {"visual_flops": 1.0}, "seed": 5}, "seeds": [3]},
    },
}


def small_recipe(tmp_path, model, **changes):
    """The debug recipe's sections with a small frontier."""
    sections = yaml.safe_load((RECIPES / "debug.yaml").read_text())
    for key in ("plan", "compare"):
        del sections[key]
    sections["model"]["path"] = str(model)
    path = tmp_path / "frontier.yaml"
    path.write_text(yaml.safe_dump({**sections, "name": "frontier", **SMALL, **changes}, sort_keys=False))
    return path


@pytest.fixture(scope="module", autouse=True)
def short_timings():
    """Of timings that mean nothing one is enough."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"BATCH_SIZE": 2, "REPEATS": 1, "DECODE_TOKENS": 2}.items():
            patch.setattr(training.tasks.frontier, name, value)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frontier")
    recipe = load_recipe(str(small_recipe(folder, "checkpoints/tiny-llava")))
    return execute(recipe, stages(recipe), folder / "run")


@pytest.mark.slow  # five students of the tiny model
def test_every_planner_budget_and_seed_is_a_point(run):
    points = json.loads((run.directory / "frontier.json").read_text())
    assert [(point["planner"], point["budget"], point["seed"]) for point in points] == [
        ("learned", 0.3, 0), ("learned", 0.3, 1), ("vica", 0.5, 0), ("random", 0.5, 3), ("random", 0.3, 3),
    ]  # fmt: skip
    for point in points:
        assert {"visual_flops", "model_flops", "relative_accuracy", "prefill_speedup"} <= set(point)
        assert 0 < point["visual_flops"] <= point["budget"] and point["prefill_speedup"] > 0
    for name in ("frontier.md", "plans.png", *(f"{axis}.png" for axis in AXES)):
        assert (run.directory / name).stat().st_size > 0
    answers = sorted(path.stem for path in (run.directory / "evaluation").iterdir())
    assert len(answers) == 1 + len(points) and "learned-0.3-1" in answers


@pytest.mark.slow  # as the frontier above, with twice as many students
def test_plans_stand_untrained_and_distilled(tmp_path):
    planners = {
        "fastv": {"plan": {"planner": "fastv", "budget": {"visual_flops": 1.0}, "layer": 1}, "budgets": [0.5]},
        "g_search": {"plan": {"planner": "g_search", "tolerance": 1.0, "trials": 2}},
        "random_tokens": {
            "plan": {"planner": "pre_pruning", "by": "random", "budget": {"visual_flops": 1.0}},
            "seeds": [0, 4],
        },
    }
    recipe = load_recipe(str(small_recipe(tmp_path, "checkpoints/tiny-llava", task="planners", planners=planners)))
    run = execute(recipe, stages(recipe), tmp_path / "run")
    points = json.loads((run.directory / "planners.json").read_text())
    assert [(point["planner"], point["budget"], point["seed"], point["distilled"]) for point in points] == [
        (*point, distilled)
        for point in (
            ("fastv", 0.5, 0),
            ("g_search", None, 0),
            *(("random_tokens", b, s) for b in (0.5, 0.3) for s in (0, 4)),
        )
        for distilled in (False, True)
    ]
    answers = {path.stem for path in (run.directory / "evaluation").iterdir()}
    assert answers >= {"teacher", "fastv-0.5-0", "fastv-0.5-0-untrained", "g_search-own-0", "g_search-own-0-untrained"}
    trained = {path.name for path in (run.directory / "students").iterdir()}
    assert trained == {"fastv-0.5-0", "g_search-own-0", *(f"random_tokens-{b}-{s}" for b in (0.5, 0.3) for s in (0, 4))}
    by_name = {(one["planner"], one["budget"], one["seed"], one["distilled"]): one for one in points}
    for key, one in by_name.items():
        families, intervals = one["accuracy_by_family"], one["interval_by_family"]
        assert one["accuracy"] == pytest.approx(sum(families.values()) / len(families)), (
            "families take turns, twice each"
        )
        assert all(intervals[name][0] <= accuracy <= intervals[name][1] for name, accuracy in families.items())
        assert one["prefill_speedup"] > 0 and one["decode_speedup"] > 0
        assert one["visual_flops"] == by_name[(*key[:3], not key[3])]["visual_flops"]
    plans = [(run.directory / "plans" / f"random_tokens-0.5-{seed}.json").read_text() for seed in (0, 4)]
    assert plans[0] != plans[1], "the seed is the ranking's"
    assert (run.directory / "search" / "g_search-own-0-untrained" / "trials.journal").exists()
    table = (run.directory / "planners.md").read_text()
    assert "| fastv, untrained |" in table and "| g_search |" in table and "its own cost" in table


def test_gates_start_from_a_plan_of_their_own_budget(tmp_path):
    def student(start, budget=1.0):
        learned = {"plan": {"planner": "gates", "budget": {"visual_flops": budget}, "steps": 2, "start": start}}
        path = small_recipe(tmp_path, "checkpoints/tiny-llava", planners={"learned": learned})
        return load_recipe(str(path)).students[-1]

    assert student({"planner": "vica", "budget": {"visual_flops": 1.0}}).plan.start.budget.visual_flops == 0.3
    wider = student({"planner": "vica", "budget": {"visual_flops": 0.4}}, budget=0.2)
    assert wider.plan.budget.visual_flops == 0.3 and wider.plan.start.budget.visual_flops == 0.6
    assert (
        student({"planner": "yopo", "withdraw_from": 2, "heads_kept": 0.5, "ffn_kept": 0.5}).plan.start.budget is None
    )
    assert student({"planner": "vtw", "budget": {"visual_flops": 1.0}}).plan.start.budget.visual_flops == 0.3
    assert student({"planner": "vtw", "tolerance": 0.01}).plan.start.budget is None
    parts = [{"planner": "vica", "budget": {"visual_flops": 1.0}}, {"planner": "vtw", "tolerance": 0.01}]
    assert student({"planner": "stack", "of": parts}).plan.start.of[0].budget.visual_flops == 1.0
    assert student({"planner": "file", "path": str(PLAN)}).plan.start.path == PLAN


@pytest.mark.slow  # five students of the tiny model
def test_steps_in_which_a_plan_is_learned_count_as_training(run):
    steps = {}
    for name in ("learned-0.3-0", "vica-0.5-0"):
        rows = read_metrics(run.directory / "students" / name / "trainer" / "metrics.jsonl")
        steps[name] = rows[-1]["step"]
    assert steps == {"learned-0.3-0": 1, "vica-0.5-0": 3}


@pytest.mark.slow  # five students of the tiny model
def test_seeds_differ_in_gates_and_training(run):
    logs = [run.directory / "gates" / f"learned-0.3-{seed}" / "trainer" / "metrics.jsonl" for seed in (0, 1)]
    assert logs[0].read_text() != logs[1].read_text()
    logs = [run.directory / "students" / f"learned-0.3-{seed}" / "trainer" / "metrics.jsonl" for seed in (0, 1)]
    assert logs[0].read_text() != logs[1].read_text()


@pytest.mark.slow
def test_a_dense_model_that_knows_nothing_is_nothing_to_compare_with(dense_folder, tmp_path):
    planners = {"vica": {"plan": {"planner": "vica", "budget": {"visual_flops": 1.0}}, "budgets": [0.5]}}
    recipe = load_recipe(str(small_recipe(tmp_path, dense_folder, planners=planners)))
    with pytest.raises(ValueError, match="answers none of the questions of shapes right"):
        execute(recipe, stages(recipe), tmp_path / "run")


@pytest.mark.slow
def test_a_budget_out_of_reach_of_a_planner_stops_the_run_before_anything_is_learned(tmp_path):
    planners = {**SMALL["planners"], "uniform": {"plan": {"planner": "uniform", "budget": {"visual_flops": 1.0}}}}
    recipe = load_recipe(
        str(small_recipe(tmp_path, "checkpoints/tiny-llava", budgets=[0.5, 0.3, 0.05], planners=planners))
    )
    with pytest.raises(ValueError, match="allowed: .* or more, the cost of the narrowest uniform plan"):
        execute(recipe, stages(recipe), tmp_path / "run")
    assert not (tmp_path / "run" / "stages" / "learn.json").exists()


@pytest.mark.parametrize(
    "planner, message",
    [
        (
            {"plan": {"planner": "file", "path": str(PLAN)}, "budgets": [0.3]},
            "budgets: the plan has no budget to vary; give it one",
        ),
        ({"plan": {"planner": "fastv", "keep": 0.5}, "budgets": [0.3]}, "budgets: the plan has no budget to vary"),
        (
            {"plan": {"planner": "g_search", "tolerance": 0.1}, "budgets": [0.3]},
            "budgets: the plan has no budget to vary",
        ),
        (
            {"plan": {"planner": "vica", "budget": {"visual_flops": 1.0}}, "budgets": [0.4]},
            r"\[0.4\] are not among budgets",
        ),
        (
            {"plan": {"planner": "gates", "budget": {"visual_flops": 1.0}, "steps": 3}},
            "plan.steps: got 3, allowed: less than",
        ),
    ],
)
def test_what_cannot_be_varied_is_refused(tmp_path, planner, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(str(small_recipe(tmp_path, "nowhere", planners={"one": planner})))


def point(planner, budget, seed, relative, **changes):
    values = {
        "planner": planner,
        "budget": budget,
        "seed": seed,
        "distilled": True,
        "visual_flops": 0.9 * budget,
        "model_flops": 0.5,
    }
    values |= {
        "prefill_speedup": 1.5,
        "decode_speedup": 1.1,
        "accuracy_by_family": {"caption": relative / 2, "choice": 0.5},
    }
    values |= {"interval_by_family": {"caption": [0.25, 0.75], "choice": [0.4, 0.6]}}
    return (
        values
        | {
            "relative_accuracy": relative,
            "accuracy": relative / 2,
            "low": relative / 2 - 0.01,
            "high": relative / 2 + 0.01,
        }
        | changes
    )


def test_intervals_are_over_seeds_or_else_over_questions():
    three = [point("a", 0.1, seed, value) for seed, value in enumerate((0.96, 0.97, 0.98))]
    assert interval(three) == pytest.approx((0.97, 0.97 - 4.303 * 0.01 / 3**0.5, 0.97 + 4.303 * 0.01 / 3**0.5))
    assert interval(three[:1]) == pytest.approx((0.96, 0.94, 0.98))


def test_the_table_and_the_pictures_hold_every_planner():
    points = [point("a", budget, seed, 0.9 + budget / 10 + seed / 100) for budget in (0.25, 0.02) for seed in range(3)]
    points.append(point("b $x$", 0.25, 0, 0.8))
    table = frontier_table(points)
    assert "| b $x$ | 80.0 % (78.0 to 82.0), at 22.5 % | – |" in table and table.count("\n") == 4
    by_family = frontier_families_table(points)
    assert "| b $x$, 25% | × 1.50 | × 1.10 | 40.0 % (25 to 75) | 50.0 % (40 to 60) |" in by_family
    assert "| a, 2% | × 1.50 | × 1.10 | 45.6 % | 50.0 % |" in by_family and by_family.count("\n") == 5
    for axis in AXES:
        assert png(frontier_plot(points, axis)).startswith(b"\x89PNG")
