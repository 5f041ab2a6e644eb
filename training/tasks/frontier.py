"""The story of `task: frontier`: students of several planners at several budgets, distilled alike; accuracy against cost.
`task: planners` is the same with each plan twice: as it was found, and distilled.

After the stages that every run of students shares (training/tasks/stages.py), it leaves in the run's folder, TASK being
frontier or planners:

    speed.json               measured speed-up of each student's plan, of prefill and of decoding
    TASK.json                one object per student: planner, budget (null: its own cost), seed, distilled, costs, accuracy, over all
                             questions and by family, speed-up
    TASK.md                  the same as tables, means over seeds
    visual_flops.png, model_flops.png, prefill_speedup.png, plans.png
    evaluation/              every question and answer of every student
"""

import json

from checkpoints.build import dense_config
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.distillation.datasets import mixture
from training.distillation.students import load_model, untrained_student
from training.files import write_json
from training.measure.benchmark import benchmark
from training.measure.costs import TEXT_TOKENS, fractions
from training.measure.evaluation import Evaluation, relative_accuracy
from training.recipe.frontier import FrontierRecipe
from training.report.frontier_plots import AXES, frontier_families_table, frontier_plot, frontier_table
from training.report.plan_plots import plans_plot
from training.report.style import save
from training.run import Run, Stage, console, device
from training.tasks.run_folder import TEACHER, evaluation_path, load_plan
from training.tasks.stages import distil, evaluation_of, run_student, stages_before_students

BATCH_SIZE, REPEATS, DECODE_TOKENS = 8, 5, 8
"""Of the timed prefills and decodes."""


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
    """Asks the dense model and every student. Raises UserError where the dense model answers nothing right."""
    dense, processor = load_model(run.recipe.model)
    samples = mixture(run.recipe, "evaluation", processor).samples
    accuracy = {TEACHER: evaluation_of(run, TEACHER, dense, processor, samples).accuracy}
    if accuracy[TEACHER] == 0:
        raise UserError(
            f"{run.recipe.model.path}: answers none of the questions right, so there is nothing to be relative to"
        )
    for student in run.recipe.students:
        accuracy[student.name] = evaluation_of(
            run, student.name, run_student(run, student), processor, samples
        ).accuracy
    return accuracy


def time_plans(run: Run) -> dict:
    """Prefill and decode of the dense weights under each plan against the stock model, in turn, in this process."""
    speed: dict[str, dict[str, float]] = {}
    of_plan: dict[VisualPlan, dict[str, float]] = {}
    for student in run.recipe.students:
        plan = load_plan(run, student.name)
        if plan not in of_plan:
            model = untrained_student(run.recipe.model, plan).to(device())
            (figures,) = benchmark(
                model,
                text_tokens=TEXT_TOKENS,
                batch_sizes=[BATCH_SIZE],
                decode_tokens=DECODE_TOKENS,
                repeats=REPEATS,
                say=lambda line: None,
            )["batches"]
            of_plan[plan] = {f"{part}_speedup": figures[part]["speedup"] for part in ("prefill", "decode")}
        speed[student.name] = of_plan[plan]
    write_json(run.directory / "speed.json", speed)
    return {}


def report(run: Run) -> dict:
    """The figures of all students, as JSON, tables and pictures."""
    recipe, config = run.recipe, dense_config(run.recipe.model.path)
    speed = json.loads((run.directory / "speed.json").read_text(encoding="utf-8"))
    teacher = Evaluation.load(evaluation_path(run, TEACHER))
    points = []
    for planner, budget, seed, student in recipe.points():
        evaluation = Evaluation.load(evaluation_path(run, student.name))
        points.append(
            {
                "planner": planner,
                "budget": budget,
                "seed": seed,
                "distilled": student.distil,
                **fractions(load_plan(run, student.name), config),
                "accuracy": evaluation.accuracy,
                "low": evaluation.low,
                "high": evaluation.high,
                "relative_accuracy": relative_accuracy(evaluation, teacher),
                "accuracy_by_family": {family: score.accuracy for family, score in evaluation.families.items()},
                "interval_by_family": {
                    family: [score.low, score.high] for family, score in evaluation.families.items()
                },
                **speed[student.name],
            }
        )
    write_json(run.directory / f"{recipe.task}.json", points)
    for axis in AXES:
        save(frontier_plot(points, axis), run.directory / f"{axis}.png")
    plans: dict[str, VisualPlan] = {}
    budgets = [budget for _, budget, *_ in recipe.points() if budget is not None]
    for planner, budget, _, student in recipe.points():
        if budget is None or budget == min(budgets):
            name = f"{planner}, its own cost" if budget is None else f"{planner} {budget:.0%}"
            plans.setdefault(name, load_plan(run, student.name))
    text = config.text_config
    save(plans_plot(plans, text.num_key_value_heads, text.intermediate_size), run.directory / "plans.png")
    table = f"{frontier_table(points)}\n{frontier_families_table(points)}"
    (run.directory / f"{recipe.task}.md").write_text(table, encoding="utf-8")
    console.print(table, soft_wrap=True)
    return {recipe.task: f"{recipe.task}.json"}
