"""What the report reads: the files in a run's folder.

All of these are needed, except for the folders search/ and gates/, which not every run has.

    recipe.yaml, env.json      the resolved recipe and the environment
    result.json                the run's figures in one flat object (teacher_accuracy, ...), and `seconds`, an object
                               that gives the seconds of each stage; after a race `race` (training/tasks/race.py)
    stages/data.json           `used` and `left_out` samples of each role (docs/run-folder.md)
    plan.json                  the student's VisualPlan
    cost.json                  {"num_units", "intermediate_size", "layers": [visual FLOPs left in each layer],
                               "dense" and "plan": {"A", "B", "C", "D" (or null), "kv_bytes"}}
    benchmark.json             what was measured on the clock (training/measure/clock/benchmark.py)
    table.json                 the rows of the comparison, the dense model first: {name, plan, distilled, visual_flops,
                               model_flops, accuracy, low, high, relative_accuracy, families: {family: accuracy}}
    metrics.jsonl              one object per logged step: `step`, `loss` and the single losses
    search/student/            what was measured to find the student's plan, if it was searched (training/planners)
    gates/student/             how the student's plan was learned, if it was learned: hardening.json,
                               trainer/gates.jsonl and trainer/metrics.jsonl. After a race, the last two folders are
                               those of the winner, such as search/student/race/WINNER/
    evaluation/teacher.json    `Evaluation` of the dense model
    evaluation/student.json    `Evaluation` of the student
    evaluation/grey.json       `Evaluation` of the dense model that is shown grey pictures
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.distillation.callbacks import read_metrics
from training.evaluation.results import Evaluation
from training.planners.tools.search import JOURNAL

EVALUATIONS = {"dense": "teacher", "student": "student", "dense, grey pictures": "grey"}
"""Name of each model in the report -> name of its file in evaluation/."""


@dataclass(frozen=True)
class Inputs:
    """The content of a run's folder."""

    folder: Path
    """The folder."""
    recipe: dict
    """The content of recipe.yaml."""
    environment: dict
    """The content of env.json."""
    result: dict
    """The content of result.json."""
    data: dict
    """The content of stages/data.json."""
    plan: VisualPlan
    """The student's plan."""
    cost: dict
    """The content of cost.json."""
    speed: dict
    """The content of benchmark.json."""
    rows: list[dict]
    """The content of table.json."""
    metrics: list[dict]
    """The rows of metrics.jsonl."""
    evaluations: dict[str, Evaluation]
    """Name of each model in the report -> its evaluation."""
    plans: dict[str, VisualPlan]
    """The plans in the table, each of them once. The key is the name of the first row that has the plan."""
    search_folder: Path | None
    """Folder of the search for the student's plan; None if there is nothing in it to plot."""
    learned: dict | None
    """How the student's plan was learned: `history` (gates.jsonl), `metrics` and `hardening`; None if it was not."""


def read_inputs(run_directory: Path) -> Inputs:
    """Reads every file that the report needs.

    Raises:
        UserError: a file is missing or broken. The message names it.
    """

    def text(name: str) -> str:
        try:
            return (run_directory / name).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{run_directory / name}: the report needs this file ({error.strerror})") from None

    def parsed(name: str) -> Any:
        try:
            return json.loads(text(name))
        except json.JSONDecodeError as error:
            raise UserError(f"{run_directory / name}: not JSON ({error})") from None

    for name in ("metrics.jsonl", *(f"evaluation/{file}.json" for file in EVALUATIONS.values())):
        text(name)
    recipe, result = yaml.safe_load(text("recipe.yaml")), parsed("result.json")
    found_as = f"student/race/{result['race']['winner']}" if "race" in result else "student"
    learned, gates = None, f"gates/{found_as}"
    if (run_directory / gates).is_dir():
        metrics = read_metrics(run_directory / gates / "trainer/metrics.jsonl")
        learned = {
            "history": read_metrics(run_directory / gates / "trainer/gates.jsonl"),
            "metrics": [row for row in metrics if "cost" in row],
            "hardening": parsed(f"{gates}/hardening.json"),
        }
    plan = VisualPlan.load(run_directory / "plan.json")
    search_folder = run_directory / "search" / found_as
    has_plots = any(path.name != JOURNAL for path in search_folder.glob("*"))
    rows = parsed("table.json")
    plans: dict[str, VisualPlan] = {}
    for row in rows:
        if row["plan"] is not None:
            row_plan = VisualPlan.load(run_directory / row["plan"])
            if row_plan not in plans.values():
                plans[row["name"]] = row_plan
    return Inputs(
        folder=run_directory,
        recipe=recipe,
        environment=parsed("env.json"),
        result=result,
        data=parsed("stages/data.json"),
        plan=plan,
        cost=parsed("cost.json"),
        speed=parsed("benchmark.json"),
        rows=rows,
        metrics=read_metrics(run_directory / "metrics.jsonl"),
        evaluations={
            name: Evaluation.load(run_directory / "evaluation" / f"{file}.json") for name, file in EVALUATIONS.items()
        },
        plans=plans,
        search_folder=search_folder if has_plots else None,
        learned=learned,
    )
