"""The stages of `task: frontier` and `task: planners`, which plot accuracy against cost.

Both make students of several planners at several budgets, and train them in the same way. With `task: planners` each
plan also has a student that is not trained.

After the stages that every run of students begins with (training/tasks/stages.py), these files are written in the run's
folder. TASK is frontier or planners.

    speed.json               measured speed-up of prefill and decode under each student's plan
    TASK.json                one object per student: planner, budget (null if it has none), seed, distilled, costs,
                             speed-up, and accuracy over all questions and by family
    TASK.md                  the same as tables, with means over seeds
    visual_flops.png, model_flops.png, prefill_speedup.png, plans.png
    evaluation/              every question and answer of every student
"""

from functools import partial

from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.distillation.students import dense_processor, limited_config, load_model, untrained_student
from training.evaluation.comparison import compare, relative_accuracy
from training.evaluation.results import Evaluation
from training.files import read_json, write_json, write_text
from training.measure.clock.benchmark import benchmark
from training.measure.costs import TEXT_TOKENS, fractions
from training.recipe.frontier import FrontierRecipe
from training.report.frontier_plots import AXES, frontier_families_table, frontier_plot, frontier_table
from training.report.plan_plots import plans_plot
from training.report.style import save
from training.run import Run, Stage, console, device
from training.tasks.run_folder import DENSE, evaluation_path, load_plan
from training.tasks.stages import stages_before_students
from training.tasks.student_stages import distil, evaluate_once, load_student, questions_of

BATCH_SIZE, REPEATS, DECODE_TOKENS = 8, 5, 8
"""Samples in a batch, repetitions, and decoded tokens in the measurements of speed."""


def stages(recipe: FrontierRecipe) -> list[Stage]:
    """Returns the stages of a run, in order."""
    return [
        *stages_before_students(recipe),
        Stage("distil", "distil the students", distil, distributed=True),
        Stage("evaluate", "ask all models held-out questions", evaluate_all, distributed=True),
        Stage("time", "time the prefill of each plan", time_plans),
        Stage("report", "draw the frontier", report),
    ]


def evaluate_all(run: Run) -> dict:
    """Asks the dense model and every student the held-out questions. Returns the accuracy of each.

    Raises:
        UserError: the dense model answers no question of a benchmark right, so that no accuracy can be relative to it.
    """
    processor = dense_processor(run.recipe.model)
    asked = questions_of(run, processor)
    dense = evaluate_once(run, DENSE, lambda: load_model(run.recipe.model)[0], processor, asked)
    accuracy = {DENSE: dense.accuracy}
    zero = [name for name, found in compare(dense, dense).items() if found.kept is None]
    if zero:
        raise UserError(
            f"{run.recipe.model.path}: answers none of the questions of {', '.join(zero)} right, so there is nothing "
            "to be relative to"
        )
    for student in run.recipe.students:
        accuracy[student.name] = evaluate_once(
            run, student.name, partial(load_student, run, student), processor, asked
        ).accuracy
    return accuracy


def time_plans(run: Run) -> dict:
    """Times prefill and decode of the dense weights under each plan, in turn with the dense model."""
    speed: dict[str, dict[str, float]] = {}
    speed_of_plan: dict[VisualPlan, dict[str, float]] = {}
    for student in run.recipe.students:
        plan = load_plan(run, student.name)
        if plan not in speed_of_plan:
            model = untrained_student(run.recipe.model, plan).to(device())
            (figures,) = benchmark(
                model,
                text_tokens=TEXT_TOKENS,
                batch_sizes=[BATCH_SIZE],
                decode_tokens=DECODE_TOKENS,
                repeats=REPEATS,
                print_line=lambda line: None,
            )["batches"]
            speed_of_plan[plan] = {f"{phase}_speedup": figures[phase]["speedup"] for phase in ("prefill", "decode")}
        speed[student.name] = speed_of_plan[plan]
    write_json(run.directory / "speed.json", speed)
    return {}


def report(run: Run) -> dict:
    """Writes the figures of all students as JSON, tables and plots."""
    recipe, config = run.recipe, limited_config(run.recipe.model)
    speed = read_json(run.directory / "speed.json")
    dense = Evaluation.load(evaluation_path(run, DENSE))
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
                "relative_accuracy": relative_accuracy(evaluation, dense),
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
    write_text(run.directory / f"{recipe.task}.md", table)
    console.print(table, soft_wrap=True)
    return {recipe.task: f"{recipe.task}.json"}
