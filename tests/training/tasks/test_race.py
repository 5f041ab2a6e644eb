"""A race against a slow loop over plain trainings of its candidates: the winner, its weights, and after kills."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from modeling.user_error import UserError
from training.distillation.callbacks import read_metrics
from training.recipe.file import load_recipe
from training.run import Run, execute
from training.tasks import race
from training.tasks.run_folder import load_plan, student_folder
from training.tasks.sparsify import stages

BUDGET = {"visual_flops": 0.5}
CANDIDATES = {
    "random": {"planner": "random", "budget": BUDGET, "seed": 0},
    "evenly": {"planner": "pre_pruning", "budget": BUDGET, "by": "uniform"},
    "vtw": {"planner": "vtw", "budget": BUDGET},
}
MAX_STEPS = 5


def settings(dense_folder, plan, *overrides):
    return [
        f"model.path={dense_folder}",
        f"plan={json.dumps(plan)}",
        "validation={num_samples: 5, steps: 1}",
        f"training.max_steps={MAX_STEPS}",
        "compare=[]",
        *overrides,
    ]


def race_of(candidates, steps=1, budget=BUDGET):
    return {"planner": "race", "budget": budget, "steps": steps, "candidates": candidates}


def distilled(recipe, folder) -> Run:
    """Executes the stages up to the distillation."""
    names = [stage.name for stage in stages(recipe)]
    return execute(recipe, stages(recipe)[: names.index("distil") + 1], folder)


def weights(run: Run, name: str = "student"):
    return load_file(student_folder(run, name) / "weights" / "adapter_model.safetensors")


def assert_trained_alike(run: Run, name: str, other: Run, other_name: str) -> None:
    assert load_plan(run, name) == load_plan(other, other_name)
    assert all((value == weights(other, other_name)[key]).all() for key, value in weights(run, name).items())


@pytest.fixture(scope="module")
def plain(dense_folder, tmp_path_factory) -> Run:
    """Each candidate's plan trained to the end, in a run without a race."""
    compare = [{"name": name, "plan": plan, "distil": True} for name, plan in list(CANDIDATES.items())[1:]]
    overrides = settings(dense_folder, CANDIDATES["random"], f"compare={json.dumps(compare)}")
    return distilled(load_recipe("debug", overrides), tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="module")
def raced(dense_folder, tmp_path_factory) -> Run:
    recipe = load_recipe("debug", settings(dense_folder, race_of(CANDIDATES)))
    return distilled(recipe, tmp_path_factory.mktemp("raced") / "run")


def plain_losses(plain: Run, name: str) -> dict[int, float]:
    """The loss on held-out samples after each step of a plain training."""
    folder = student_folder(plain, "student" if name == "random" else name)
    return {
        row["step"]: row["eval_loss"] for row in read_metrics(folder / "trainer/metrics.jsonl") if "eval_loss" in row
    }


def test_the_winner_is_that_of_a_slow_loop_and_trained_as_alone(plain, raced):
    left, seen = list(CANDIDATES), {name: [] for name in CANDIDATES}
    for step, keep in ((1, 2), (2, 1)):
        losses = {name: plain_losses(plain, name)[step] for name in left}
        for name in left:
            seen[name].append(losses[name])
        while len(left) > keep:
            left.remove(max(left, key=losses.__getitem__))
    outcome = raced.result("race")["students"]["student"]
    assert [outcome["winner"]] == left
    assert {row["name"]: row["losses"] for row in outcome["candidates"]} == {
        name: pytest.approx(losses, rel=1e-6) for name, losses in seen.items()
    }
    assert len({round(losses[0], 6) for losses in seen.values()}) == 3, "any of them would have won"
    assert (outcome["rounds"], outcome["extra_steps"], outcome["extra_share"]) == ([1, 2], 3, 3 / MAX_STEPS)
    (winner,) = left
    assert_trained_alike(raced, "student", plain, "student" if winner == "random" else winner)
    steps = [
        row["step"] for row in read_metrics(student_folder(raced, "student") / "trainer/metrics.jsonl") if "loss" in row
    ]
    assert steps == [1, 2, 3, 4, 5]
    assert not list(raced.directory.rglob("checkpoint-*"))


class Killed(BaseException):
    """Stands for SIGKILL: nothing is done after it."""


def test_a_race_that_is_killed_anywhere_ends_as_one_that_is_not(raced, tmp_path, monkeypatch):
    """Kills before and after each training, between rounds, and before the winner's training is handed on."""
    folder = tmp_path / "run"
    shutil.copytree(raced.directory, folder)
    for gone in ("stages/race.json", "stages/distil.json"):
        (folder / gone).unlink()
    shutil.rmtree(folder / "students")
    calls: list[tuple] = []

    def once(name, before):
        original = getattr(race, name)

        def call(*arguments, **keywords):
            key = (name, before, str(arguments[1]) + str(keywords))
            if before and key not in calls:
                calls.append(key)
                raise Killed
            result = original(*arguments, **keywords)
            if not before and key not in calls:
                calls.append(key)
                raise Killed
            return result

        monkeypatch.setattr(race, name, call)

    once("train_by_own_plan", before=False)
    once("write_json", before=True)
    once("write_json", before=False)
    monkeypatch.setattr(Path, "rename", lambda self, to, rename=Path.rename: _kill_before(calls, rename, self, to))
    kills = 0
    while True:
        try:
            run = distilled(raced.recipe, folder)
            break
        except Killed:
            kills += 1
    assert kills == len(calls) == 3 + 2 + 2 * 2 + 1, "not every place was hit"
    assert run.result("race")["students"] == raced.result("race")["students"]
    assert_trained_alike(run, "student", raced, "student")


def _kill_before(calls, rename, source, target):
    """Kills once before the training of the winner is moved."""
    if source.name == "trainer" and "moved" not in calls:
        calls.append("moved")
        raise Killed
    return rename(source, target)


def test_one_candidate_is_trained_as_without_a_race(dense_folder, plain, tmp_path):
    recipe = load_recipe("debug", settings(dense_folder, race_of({"only": CANDIDATES["random"]})))
    run = distilled(recipe, tmp_path / "run")
    assert run.result("race")["students"]["student"]["extra_steps"] == 0
    assert_trained_alike(run, "student", plain, "student")


GATES = {"planner": "gates", "budget": BUDGET, "steps": 2}


@pytest.mark.parametrize(
    ("plan", "overrides", "message"),
    [
        (race_of({"a": race_of(CANDIDATES)}), [], "plan.candidates.a.planner: got 'race'; allowed: "),
        (
            race_of(CANDIDATES, steps=3),
            [],
            "plan.steps: got 3, so that the race ends at step 6, allowed: before .* (5)",
        ),
        (race_of(CANDIDATES), ["validation=null"], "validation: got null, but a race"),
        (race_of(CANDIDATES), ["training.max_steps=null", "training.num_epochs=1"], "max_steps: got null, but a race"),
        (
            race_of(CANDIDATES, budget={"visual_flops": 0.4}),
            [],
            "candidates.random.budget: got visual_flops 0.5, allowed",
        ),
        (
            race_of({"a": CANDIDATES["vtw"], "A": CANDIDATES["vtw"]}),
            [],
            "candidates: names must differ in more than case",
        ),
        (race_of({"a/b": CANDIDATES["vtw"]}), [], "plan.candidates"),
        (race_of({}), [], "plan.candidates"),
        (race_of({**CANDIDATES, "gates": GATES}, steps=2), [], "candidates.gates.steps: got 2, allowed: less than"),
        (
            race_of(CANDIDATES),
            ["compare=[{name: other, distil: false, seed: 3}]"],
            "student other: distil: got false, allowed: true",
        ),
    ],
)
def test_a_race_that_cannot_be_run_is_refused(plan, overrides, message):
    with pytest.raises(UserError, match=message):
        load_recipe("debug", settings("checkpoints/tiny-llava", plan, *overrides))


def test_a_plan_that_costs_more_than_the_budget_is_refused(dense_folder, tmp_path):
    dear = {"planner": "vtw", "layer": 2}
    recipe = load_recipe("debug", settings(dense_folder, race_of({**CANDIDATES, "dear": dear}, budget=BUDGET)))
    with pytest.raises(UserError, match="plan.candidates.dear: its plan costs 0.* of the dense model's visual_flops"):
        distilled(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "students").exists()
