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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
    outcomes: dict[str, dict] = {}
    for student in races(run.recipe):
        outcome = _race_one(run, student, data)
        sharing = [other.name for other in run.recipe.students if plan_key(other) == plan_key(student)]
        outcomes |= dict.fromkeys(sharing, outcome)
        _on_rank_0(partial(_hand_on, run, student, outcome["winner"], sharing))
        if is_main_process():
            console.print(race_table(student.name, outcome))
    return {"students": outcomes}


def race_table(name: str, outcome: dict) -> Table:
    """Returns a table of one race, given the student's name and what `race` returns of it."""
    steps = [str(step) for step in outcome["rounds"]]
    table = Table("candidate", "visual FLOPs", *(f"loss at step {step}" for step in steps), title=f"race of {name}")
    for row in outcome["candidates"]:
        losses = [f"{loss:.4f}" for loss in row["losses"]]
        table.add_row(row["name"], percent(row["visual_flops"]), *losses, *[""] * (len(steps) - len(losses)))
    return table


def _race_one(run: Run, student: CompareSettings, data: TrainingData) -> dict:
    """Races the candidates of one student, and returns the outcome."""
    journal, running = student_folder(run, student.name) / "race" / "rounds.json", candidates(student)
    prices = _on_rank_0(partial(_prices, run, student, running))
    over = _on_rank_0(lambda: read_json(journal) if journal.exists() else [])
    for number, (count, step) in enumerate(student.plan.rounds):
        if number == len(over):
            for candidate in running.values():
                train_by_own_plan(run, candidate, data, pause_at=_own_step(candidate, step))
            over = _on_rank_0(partial(_end_round, run, running, step, over, journal))
        losses = over[number]["losses"]
        ranked = sorted(running, key=lambda name: (losses[name], prices[name]))
        best, dropped = ranked[: (count + 1) // 2], ranked[(count + 1) // 2 :]
        _on_rank_0(partial(_delete_checkpoints, run, [running[name] for name in dropped]))
        running = {name: one for name, one in running.items() if name in best}
    (winner,) = running
    return _outcome(run, student, winner, over)


def _end_round(
    run: Run, running: Mapping[str, CompareSettings], step: int, over: list[dict], journal: Path
) -> list[dict]:
    """Writes the journal of the rounds that are over, and returns it."""
    over = [*over, {"step": step, "losses": {name: _loss(run, one, step) for name, one in running.items()}}]
    write_json(journal, over)
    return over


def _delete_checkpoints(run: Run, dropped: Sequence[CompareSettings]) -> None:
    for candidate in dropped:
        delete_checkpoints(_trainer_folder(run, candidate))


def _hand_on(run: Run, student: CompareSettings, winner: str, sharing: Sequence[str]) -> None:
    """Gives the winner's training to the student, and its plan to all students that share it."""
    candidate = candidates(student)[winner]
    plan = load_plan(run, candidate.name)
    for name in sharing:
        plan.save(plan_path(run, name))
    trained = _trainer_folder(run, candidate)
    if trained.exists():  # after a stop it may be moved already
        trained.rename(_trainer_folder(run, student))


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
