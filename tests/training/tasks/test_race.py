"""A race against a slow loop over plain trainings of its candidates: the winner, its weights, and after kills."""

import json
import random
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import TrainerState

from modeling.layer_plan import LayerPlan
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.distillation.callbacks import read_metrics
from training.distillation.trainer_checkpoints import last_step
from training.files import append_text, write_text
from training.recipe.file import load_recipe
from training.run import Run, execute
from training.starts import COMPLETE
from training.tasks import race
from training.tasks.run_folder import load_plan, plan_path, student_folder
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


class Killed(BaseException):
    """Stands for SIGKILL: nothing is done after it."""


# ---- who is dropped when: trainings that only say what their losses are ----


class Told:
    """Stands for trainings: each candidate's loss at each step is told, and a checkpoint is left."""

    def __init__(self, losses: dict[str, dict[int, float]], kill_after: int | None = None):
        self.losses, self.trained, self.kill_after = losses, [], kill_after

    def __call__(self, run, student, data, pause_at):
        folder = student_folder(run, student.name) / "trainer"
        name = folder.parent.name
        if last_step(folder) >= pause_at:
            return
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        (folder / f"checkpoint-{pause_at}").mkdir(parents=True)
        write_text(folder / f"checkpoint-{pause_at}" / COMPLETE, "{}")
        TrainerState().save_to_json(str(folder / f"checkpoint-{pause_at}" / "trainer_state.json"))
        append_text(folder / "metrics.jsonl", json.dumps({"step": pause_at, "loss": 0.0}) + "\n")
        row = {"step": pause_at, "eval_loss": self.losses[name][pause_at]}
        append_text(folder / "metrics.jsonl", json.dumps(row) + "\n")
        self.trained.append((name, pause_at))
        if len(self.trained) == self.kill_after:
            raise Killed


def told_run(folder: Path, names: list[str], heads: dict[str, int]) -> Run:
    """A run whose candidates have plans, of which each costs more with more heads."""
    plan = race_of({name: {"planner": "random", "budget": BUDGET, "seed": 0} for name in names})
    recipe = load_recipe("debug", settings("checkpoints/tiny-llava", plan, "training.max_steps=100"))
    for name in names:
        plan = VisualPlan.dense(8).replace(0, heads=heads[name])
        plan.save(folder / "plans" / "student" / "race" / f"{name}.json")
    return Run(recipe, folder)


def slow_race(names: list[str], losses: dict[str, dict[int, float]], heads: dict[str, int]) -> list[tuple[str, int]]:
    """Which candidate is trained to which step. The winner is the last one."""
    left, step, trained = list(names), 1, []
    while len(left) > 1:
        trained += [(name, step) for name in left]
        for _ in range(len(left) // 2):
            worst = max(losses[name][step] for name in left)
            dearest = max(heads[name] for name in left if losses[name][step] == worst)
            left.remove([name for name in left if (losses[name][step], heads[name]) == (worst, dearest)][-1])
        step *= 2
    return [*trained, (left[0], 0)]


def test_the_worse_half_is_dropped_in_each_round(tmp_path, monkeypatch):
    """With few different losses and costs, so that there are ties; every race is killed somewhere and goes on."""
    monkeypatch.setattr(race, "training_data", lambda run: None)
    draw = random.Random(0)
    winners = set()
    for number, count in enumerate([1, 2, 3, 4, 5, 8, 8, 8]):
        names = [f"c{index}" for index in range(count)]
        losses = {name: {step: draw.randrange(3) for step in (1, 2, 4)} for name in names}
        heads = {name: draw.randrange(1, 3) for name in names}
        *trained, (winner, _) = slow_race(names, losses, heads)
        run = told_run(tmp_path / str(number), names, heads)
        told = Told(losses, kill_after=draw.randrange(1, len(trained) + 1) if trained else None)
        monkeypatch.setattr(race, "train_by_own_plan", told)
        if trained:
            with pytest.raises(Killed):
                race.race(run)
            told.kill_after = None
        outcome = race.race(run)["students"]["student"]
        assert outcome["winner"] == winner
        assert told.trained == trained, "and what was over is not done again"
        assert outcome["extra_steps"] == run.recipe.plan.all_steps - run.recipe.plan.last_step
        for row in outcome["candidates"]:
            assert row["losses"] == [losses[row["name"]][step] for name, step in trained if name == row["name"]]
        kept = [path.parent.relative_to(run.directory) for path in run.directory.rglob("checkpoint-*")]
        assert kept == ([Path("students/student/trainer")] if trained else []), "the winner goes on, others are gone"
        assert load_plan(run, "student") == load_plan(run, f"student/race/{winner}")
        winners.add(winner)
    assert len(winners) > 2


def test_a_plan_that_costs_more_than_the_budget_is_refused(tmp_path):
    run = told_run(tmp_path, ["cheap", "dear"], {"cheap": 1, "dear": 1})
    text_alone = VisualPlan((LayerPlan(tokens=0.0),) * 8)
    text_alone.save(plan_path(run, "student/race/cheap"))
    with pytest.raises(UserError, match="plan.candidates.dear: its plan costs 0.* of the dense model's visual_flops, "):
        race.refuse_dear_candidates(run)
    text_alone.save(plan_path(run, "student/race/dear"))
    race.refuse_dear_candidates(run)


def test_a_loss_that_is_missing_or_not_finite_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(race, "training_data", lambda run: None)
    run = told_run(tmp_path, ["a", "b"], {"a": 1, "b": 1})
    monkeypatch.setattr(race, "train_by_own_plan", Told({"a": {1: 0.5}, "b": {1: float("nan")}}))
    with pytest.raises(UserError, match="race/b/trainer/metrics.jsonl: got nan loss on held-out samples at step 1"):
        race.race(run)
    (tmp_path / "students/student/race/b/trainer/metrics.jsonl").unlink()
    monkeypatch.setattr(race, "train_by_own_plan", lambda *arguments, **keywords: None)
    with pytest.raises(UserError, match="race/b/trainer/metrics.jsonl: got no loss"):
        race.race(run)


# ---- real trainings ----


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_one_candidate_is_trained_as_without_a_race(dense_folder, plain, tmp_path):
    recipe = load_recipe("debug", settings(dense_folder, race_of({"only": CANDIDATES["random"]})))
    run = distilled(recipe, tmp_path / "run")
    assert run.result("race")["students"]["student"]["extra_steps"] == 0
    assert_trained_alike(run, "student", plain, "student")


GATES = {"planner": "gates", "budget": BUDGET, "steps": 2, "ffn_blocks": 4, "draws": 2}


@pytest.mark.slow
def test_learned_plans_race_and_the_report_shows_it(dense_folder, tmp_path):
    """Steps that learn gates are among those of the race. The report's figures are those of the winner."""
    raced = {"gates": GATES, "evenly": CANDIDATES["evenly"]}
    compare = json.dumps([{"name": "untrained", "distil": False}, {"name": "gates", "plan": GATES, "distil": True}])
    recipe = load_recipe("debug", settings(dense_folder, race_of(raced, steps=3), f"compare={compare}"))
    run = execute(recipe, stages(recipe), tmp_path / "run")
    outcome = json.loads((run.directory / "result.json").read_text())["race"]
    assert outcome == run.result("race")["students"]["student"]
    assert (outcome["rounds"], outcome["extra_steps"]) == ([3], 3)
    # The gates' own step 1 is step 3 of the race. Both students of that plan have its adapters, so their losses agree.
    alone = student_folder(run, "gates") / "trainer/metrics.jsonl"
    expected = {row["step"]: row["eval_loss"] for row in read_metrics(alone) if "eval_loss" in row}
    (learned,) = (row for row in outcome["candidates"] if row["name"] == "gates")
    assert learned["losses"] == [pytest.approx(expected[1], rel=1e-6)]
    assert (
        load_plan(run, "student") == load_plan(run, "untrained") == load_plan(run, f"student/race/{outcome['winner']}")
    )
    for name in ("report.html", "checkpoint/README.md"):
        text = (run.directory / name).read_text(encoding="utf-8")
        assert f"won by {outcome['winner']} among 2 candidates; the race took 3 more steps (60%)" in text.replace(
            "`", ""
        )


@pytest.mark.parametrize(
    ("plan", "overrides", "message"),
    [
        (race_of({"a": race_of(CANDIDATES)}), [], "plan.candidates.a.planner: got 'race'; allowed: "),
        (
            race_of(CANDIDATES, steps=3),
            [],
            "plan.steps: got 3, so that the race ends at step 6; allowed: fewer",
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
