"""The stage in which candidate plans race (training/recipe/race.py).

A candidate is trained as a student under its plan. In each round that training goes on from its checkpoint, and pauses
at the step at which the round ends. So the winner is trained as it would be without a race, and its training goes on
as that of the student. These files are written in the run's folder:

    students/NAME/race/rounds.json         the rounds that are over: each one's `step` and `losses`
    students/NAME/race/CANDIDATE/trainer/  the training of a candidate. It has a checkpoint until it is dropped
    students/NAME/trainer/                 the training of the winner, once the race is over
    plans/NAME.json                        the plan of the winner
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from rich.table import Table

from modeling.user_error import UserError
from training.distillation.callbacks import read_metrics
from training.distillation.students import limited_config
from training.distillation.trainer_checkpoints import delete_checkpoints
from training.files import read_json, write_json
from training.measure.costs import fractions
from training.measure.price import PlanPrice
from training.ranks import from_rank_0, led_by_rank_0
from training.recipe.gates import GateSettings
from training.recipe.race import RaceSettings
from training.recipe.student import CompareSettings
from training.report.numbers import percent
from training.run import Run, console, is_main_process
from training.tasks.run_folder import load_latency, load_plan, plan_path, student_folder
from training.tasks.shared_plans import candidates, plan_key, races
from training.tasks.student_stages import TrainingData, train_by_own_plan, training_data

Value = TypeVar("Value")

ROUNDING = 1e-9
"""By how much a cost may exceed a budget, as a share of the dense model's."""


def refuse_dear_candidates(run: Run) -> None:
    """Raises UserError if a plan that was found for a race costs more than its budget. Learned plans do not."""
    for student in races(run.recipe):
        budget = student.plan.budget
        found = {name: one for name, one in candidates(student).items() if not isinstance(one.plan, GateSettings)}
        for name, cost in _prices(run, student, found).items():
            if cost > budget.share + ROUNDING:
                raise UserError(
                    f"plan.candidates.{name}: its plan costs {cost:.4g} of the dense model's {budget.measure}, "
                    f"allowed: {budget.share:g}, the budget of the race, as it would win unfairly"
                )


def race(run: Run) -> dict:
    """Races the candidates of every race, and writes the plan of each winner. All processes execute it together.

    It returns an object for each student, as `_outcome` makes it.

    Raises:
        UserError: as `DistillationTrainer`, or a candidate's loss on the held-out samples is missing or not finite.
    """
    data = training_data(run)
    outcomes = {plan_key(student): _race_one(run, student, data) for student in races(run.recipe)}
    of_students = {}
    for student in run.recipe.students:
        if isinstance(student.plan, RaceSettings):
            of_students[student.name] = outcomes[plan_key(student)]
    if is_main_process():
        for student in races(run.recipe):
            outcome = outcomes[plan_key(student)]
            plan = load_plan(run, candidates(student)[outcome["winner"]].name)
            for other in run.recipe.students:
                if plan_key(other) == plan_key(student):
                    plan.save(plan_path(run, other.name))
            console.print(race_table(student.name, outcome))
    return {"students": of_students}


def race_table(name: str, outcome: dict) -> Table:
    """Returns a table of one race, given the student's name and what `race` returns of it."""
    steps = [str(step) for step in outcome["rounds"]]
    table = Table("candidate", "visual FLOPs", *(f"loss at step {step}" for step in steps), title=f"race of {name}")
    for row in outcome["candidates"]:
        losses = [f"{loss:.4f}" for loss in row["losses"]]
        table.add_row(row["name"], percent(row["visual_flops"]), *losses, *[""] * (len(steps) - len(losses)))
    return table


def _race_one(run: Run, student: CompareSettings, data: TrainingData) -> dict:
    """Races the candidates of one student, hands the training of the winner on to it, and returns the outcome."""
    folder = student_folder(run, student.name) / "race"
    journal, running = folder / "rounds.json", candidates(student)
    prices = _on_rank_0(lambda: _prices(run, student, running))
    over = _on_rank_0(lambda: read_json(journal) if journal.exists() else [])
    for number, (count, step) in enumerate(student.plan.rounds):
        if number == len(over):
            for candidate in running.values():
                train_by_own_plan(run, candidate, data, pause_at=_own_step(candidate, step))
            losses = _on_rank_0(lambda: {name: _loss(run, one, step) for name, one in running.items()})  # noqa: B023
            over.append({"step": step, "losses": losses})
            if is_main_process():
                write_json(journal, over)
        losses = over[number]["losses"]
        best = sorted(running, key=lambda name: (losses[name], prices[name]))[: (count + 1) // 2]
        for name in running.keys() - best:
            if is_main_process():
                delete_checkpoints(_trainer_folder(run, running[name]))
        running = {name: one for name, one in running.items() if name in best}
    (winner,) = running
    if is_main_process() and _trainer_folder(run, running[winner]).exists():
        _trainer_folder(run, running[winner]).rename(_trainer_folder(run, student))
    return _outcome(run, student, winner, over)


def _outcome(run: Run, student: CompareSettings, winner: str, rounds: list[dict]) -> dict:
    """Returns what is reported of a race.

    It has the `winner`, the last step of all `rounds`, the `extra_steps` of all but the winner with their
    `extra_share` of training.max_steps, and of all `candidates` the costs of their plans, and their losses on the
    held-out samples in each round that they were in.
    """
    config, settings = limited_config(run.recipe.model), student.plan
    return {
        "winner": winner,
        "rounds": [one["step"] for one in rounds],
        "extra_steps": settings.extra_steps,
        "extra_share": settings.extra_steps / run.recipe.training.max_steps,
        "candidates": [
            {
                "name": name,
                "planner": candidate.plan.planner,
                **fractions(load_plan(run, candidate.name), config),
                "losses": [one["losses"][name] for one in rounds if name in one["losses"]],
            }
            for name, candidate in candidates(student).items()
        ],
    }


def _prices(run: Run, student: CompareSettings, of: Mapping[str, CompareSettings]) -> dict[str, float]:
    """Returns what the plans of candidates cost in the measure of the race's budget."""
    price = PlanPrice(limited_config(run.recipe.model), student.plan.budget.measure, load_latency(run))
    return {name: price(load_plan(run, candidate.name)) for name, candidate in of.items()}


def _own_step(candidate: CompareSettings, step: int) -> int:
    """Returns the step of a candidate's distillation at a step of the race. Steps that learned its gates are before."""
    return step - candidate.plan.steps if isinstance(candidate.plan, GateSettings) else step


def _loss(run: Run, candidate: CompareSettings, step: int) -> float:
    """Returns a candidate's loss on the held-out samples at a step of the race."""
    metrics, own = _trainer_folder(run, candidate) / "metrics.jsonl", _own_step(candidate, step)
    found = [row["eval_loss"] for row in read_metrics(metrics) if row["step"] == own and "eval_loss" in row]
    if not found or not math.isfinite(found[-1]):
        raise UserError(
            f"{metrics}: got {found[-1] if found else 'no'} loss on held-out samples at step {own}, allowed: a finite "
            f"one; delete {metrics.parent.parent}, and this candidate is trained again"
        )
    return found[-1]


def _trainer_folder(run: Run, student: CompareSettings) -> Path:
    return student_folder(run, student.name) / "trainer"


def _on_rank_0(story: Callable[[], Value]) -> Value:
    """Returns on every rank what rank 0 finds. Every process calls this."""
    return from_rank_0(led_by_rank_0({}, lambda _: story()))
