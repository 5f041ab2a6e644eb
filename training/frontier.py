"""The story of `task: frontier`: students of several planners at several budgets, distilled alike; accuracy against cost.

After the stages that every run of students shares (training/student_stages.py), it leaves in the run's folder:

    prefill.json             measured prefill speed-up of each plan
    frontier.json            one object per student: planner, budget, seed, costs, accuracy, prefill_speedup
    frontier.md              the same as a table, means over seeds
    visual_flops.png, model_flops.png, prefill_speedup.png, plans.png
    evaluation/              every question and answer of every student
"""

import json

from checkpoints.build import dense_config
from modeling.visual_plan import VisualPlan
from training.benchmark import benchmark
from training.costs import TEXT_TOKENS, fractions
from training.datasets import mixture
from training.evaluation import Evaluation, relative_accuracy
from training.frontier_pictures import AXES, frontier_picture, frontier_table
from training.gate_pictures import plans_picture
from training.pictures import save
from training.recipe import FrontierRecipe
from training.run import Run, Stage, console, device, write_json
from training.student_stages import (
    TEACHER,
    distil,
    evaluation_of,
    evaluation_path,
    load_plan,
    run_student,
    stages_before_students,
)
from training.students import load_model, untrained_student

BATCH_SIZE, REPEATS = 8, 5
"""Of the timed prefills."""


def stages(recipe: FrontierRecipe) -> list[Stage]:
    """The stages of a run, in order."""
    return [
        *stages_before_students(recipe),
        Stage("distil", "distil the students", distil, distributed=True),
        Stage("evaluate", "ask all models held-out questions", evaluate_all),
        Stage("time", "time the prefill of each plan", time_plans),
        Stage("report", "draw the frontier", report),
    ]


def evaluate_all(run: Run) -> dict:
    """Asks the dense model and every student. Raises ValueError where the dense model answers nothing right."""
    dense, processor = load_model(run.recipe.model)
    samples = mixture(run.recipe, "evaluation", processor).samples
    accuracy = {TEACHER: evaluation_of(run, TEACHER, dense, processor, samples).accuracy}
    if accuracy[TEACHER] == 0:
        raise ValueError(f"{run.recipe.model.path}: answers none of the questions right, so there is nothing to be relative to")
    for student in run.recipe.students:
        accuracy[student.name] = evaluation_of(run, student.name, run_student(run, student), processor, samples).accuracy
    return accuracy


def time_plans(run: Run) -> dict:
    """Prefill of the dense weights under each plan against the stock model, in turn, in this process."""
    speedup: dict[str, float] = {}
    of_plan: dict = {}
    for student in run.recipe.students:
        plan = load_plan(run, student.name)
        if plan not in of_plan:
            model = untrained_student(run.recipe.model, plan).to(device())
            figures = benchmark(
                model, text_tokens=TEXT_TOKENS, batch_sizes=[BATCH_SIZE], decode_tokens=1, repeats=REPEATS, say=lambda line: None
            )
            of_plan[plan] = figures["batches"][0]["prefill"]["speedup"]
        speedup[student.name] = of_plan[plan]
    write_json(run.directory / "prefill.json", speedup)
    return {}


def report(run: Run) -> dict:
    """frontier.json, and the pictures."""
    recipe, config = run.recipe, dense_config(run.recipe.model.path)
    speedup = json.loads((run.directory / "prefill.json").read_text(encoding="utf-8"))
    teacher = Evaluation.load(evaluation_path(run, TEACHER))
    points = []
    for planner, budget, seed, student in recipe.points():
        evaluation = Evaluation.load(evaluation_path(run, student.name))
        points.append(
            {
                "planner": planner,
                "budget": budget,
                "seed": seed,
                **fractions(load_plan(run, student.name), config),
                "accuracy": evaluation.accuracy,
                "low": evaluation.low,
                "high": evaluation.high,
                "relative_accuracy": relative_accuracy(evaluation, teacher),
                "prefill_speedup": speedup[student.name],
            }
        )
    write_json(run.directory / "frontier.json", points)
    for axis in AXES:
        save(frontier_picture(points, axis), run.directory / f"{axis}.png")
    smallest: dict[str, VisualPlan] = {}
    least = min(budget for _, budget, *_ in recipe.points())
    for planner, budget, _, student in recipe.points():
        if budget == least:
            smallest.setdefault(f"{planner} {budget:.0%}", load_plan(run, student.name))
    text = config.text_config
    save(plans_picture(smallest, text.num_key_value_heads, text.intermediate_size), run.directory / "plans.png")
    table = frontier_table(points)
    (run.directory / "frontier.md").write_text(table, encoding="utf-8")
    console.print(table, soft_wrap=True)
    return {"frontier": "frontier.json"}
