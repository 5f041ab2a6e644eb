"""The stages of `task: sparsify`: from a dense model to a sparse checkpoint and a report.

After the stages that every run of students begins with (training/tasks/stages.py), these files are written in the run's
folder:

    checkpoint/              the student as a checkpoint that stands alone, with the recipe, its plan and its result
    plan.json, cost.json, table.json, metrics.jsonl, benchmark.json, result.json, report.html
"""

import shutil
from functools import cache, partial

import torch

from checkpoints.export import export_checkpoint
from checkpoints.load import load_checkpoint
from training.distillation.datasets import calibration_batches
from training.distillation.students import dense_processor, limited_config, load_model, trained_student
from training.evaluation.comparison import Comparison, as_dict, compare, relative_accuracy
from training.evaluation.results import Evaluation
from training.files import read_json, write_json, write_text, writing
from training.measure.clock.benchmark import benchmark
from training.measure.costs import TEXT_TOKENS, cost_sheet, fractions
from training.recipe.student import STUDENT, SparsifyRecipe
from training.report.page import write_report
from training.report.plan_plots import plan_plot
from training.report.style import save
from training.report.tables import models_table
from training.run import Run, Stage, console, device, is_main_process
from training.tasks.publishing.card import card_of, training_rows
from training.tasks.publishing.publish import add_record, publish_checkpoint
from training.tasks.run_folder import DENSE, GREY, data_folder, evaluation_path, load_plan, plan_path, student_folder
from training.tasks.shared_plans import races
from training.tasks.stages import stages_before_students
from training.tasks.student_stages import distil, evaluate_once, load_student, questions_of

BATCH_SIZES = (1, 4)
"""Prompts in a batch, of the timings."""
DENSE_COST = {"visual_flops": 1.0, "model_flops": 1.0}
"""Cost of the stock model. The dense plan costs less, as it leaves out work whose result nothing reads."""


def stages(recipe: SparsifyRecipe) -> list[Stage]:
    """Returns the stages of a run, in order."""
    return [
        *stages_before_students(recipe),
        Stage("cost", "count what the plan costs", count_costs),
        Stage("distil", "distil the students", distil_students, distributed=True),
        Stage("evaluate", "ask all models held-out questions", evaluate_all, distributed=True),
        Stage("export", "export, and reload in a fresh process", export),
        Stage("benchmark", "time dense against sparse", benchmark_checkpoint),
        Stage("report", "write the report", report),
        *([Stage("publish", "publish the checkpoint", publish_checkpoint)] if recipe.publish else []),
    ]


def count_costs(run: Run) -> dict:
    """Writes the plan of the exported student to plan.json, and its costs to cost.json.

    It returns the costs as shares of the dense model's.
    """
    plan, config = load_plan(run, STUDENT), limited_config(run.recipe.model)
    plan.save(run.directory / "plan.json")
    write_json(run.directory / "cost.json", cost_sheet(plan, config, getattr(torch, run.recipe.model.dtype).itemsize))
    return fractions(plan, config)


def distil_students(run: Run) -> dict:
    """Trains all students, and copies the metrics of the exported one to metrics.jsonl in the run's folder."""
    distil(run)
    if is_main_process():
        shutil.copyfile(student_folder(run, STUDENT) / "trainer" / "metrics.jsonl", run.directory / "metrics.jsonl")
    return {}


def evaluate_all(run: Run) -> dict:
    """Asks all models the held-out questions, and writes table.json. Returns the accuracy of each.

    The models are the dense model, the dense model that is shown grey pictures, and every student.
    """
    recipe = run.recipe
    config, processor = limited_config(recipe.model), dense_processor(recipe.model)
    asked = questions_of(run, processor)
    load_dense = cache(lambda: load_model(recipe.model.of_teacher)[0])  # once for both
    dense = evaluate_once(run, DENSE, load_dense, processor, asked)
    grey = evaluate_once(run, GREY, load_dense, processor, asked)
    del load_dense
    table = [table_row("dense", None, False, DENSE_COST, dense, dense)]
    for student in recipe.students:
        plan = load_plan(run, student.name)
        evaluation = evaluate_once(run, student.name, partial(load_student, run, student), processor, asked)
        plan_file = str(plan_path(run, student.name).relative_to(run.directory))
        table.append(table_row(student.name, plan_file, student.distil, fractions(plan, config), evaluation, dense))
    table.append(table_row("dense, grey pictures", None, False, DENSE_COST, grey, dense))
    if is_main_process():
        write_json(run.directory / "table.json", table)
    return {row["name"]: row["accuracy"] for row in table}


def export(run: Run) -> dict:
    """Writes the student as a checkpoint that stands alone. It is loaded again in another process and compared."""
    recipe = run.recipe
    plan = load_plan(run, STUDENT)
    model = trained_student(recipe, plan, student_folder(run, STUDENT)).to(device())
    processor = dense_processor(recipe.model)
    cost = read_json(run.directory / "cost.json")
    plot_path = run.directory / "plan.png"
    save(plan_plot(plan, cost["num_units"], cost["intermediate_size"], cost["layers"]), plot_path)
    card = card_of(run, model.visual_plan, model.config, compared(run), picture=plot_path.name)
    probe = calibration_batches(recipe, processor, data_folder(run))[0]
    del probe["labels"]
    folder = run.directory / "checkpoint"
    with writing(folder):
        export_checkpoint(model, processor, folder, card=card, probe=probe, picture=plot_path)
    return {"checkpoint": "checkpoint"}


def benchmark_checkpoint(run: Run) -> dict:
    """Times prefill and decode of the checkpoint, in turn with the dense model, and writes benchmark.json.

    The figures are added to the checkpoint's card.
    """
    model, _ = load_checkpoint(run.directory / "checkpoint", "auto")
    figures = benchmark(
        model.to(device()),
        text_tokens=TEXT_TOKENS,
        batch_sizes=BATCH_SIZES,
        decode_tokens=16,
        repeats=5,
        print_line=console.print,
    )
    write_json(run.directory / "benchmark.json", figures)
    card = card_of(run, model.visual_plan, model.config, compared(run), picture="plan.png", speed=figures)
    write_text(run.directory / "checkpoint" / "README.md", card)
    return {"prefill_speedup": figures["batches"][0]["prefill"]["speedup"]}


def report(run: Run) -> dict:
    """Writes result.json and report.html."""
    dense, student = (Evaluation.load(evaluation_path(run, name)) for name in (DENSE, STUDENT))
    plan = load_plan(run, STUDENT)
    done = [stage.name for stage in stages(run.recipe) if stage.name not in ("report", "publish")]
    result = {
        "teacher_accuracy": dense.accuracy,
        "student_accuracy": student.accuracy,
        "relative_accuracy": relative_accuracy(student, dense),
        "benchmarks": as_dict(compared(run)),
        **fractions(plan, limited_config(run.recipe.model)),
        "prefill_speedup": run.result("benchmark")["prefill_speedup"],
        **({"race": run.result("race")["students"][STUDENT]} if races(run.recipe) else {}),
        "seconds": {name: run.result(name)["seconds"] for name in done},
    }
    write_json(run.directory / "result.json", result)
    add_record(run)
    path = write_report(run.directory, training_rows(run, compared(run)))
    console.print(models_table(read_json(run.directory / "table.json")))
    console.print(f"report: {path}", soft_wrap=True)
    return {"report": path.name}


def compared(run: Run) -> dict[str, Comparison]:
    """Returns the exported student beside the dense model on each benchmark."""
    dense, student, blind = (Evaluation.load(evaluation_path(run, name)) for name in (DENSE, STUDENT, GREY))
    return compare(dense, student, blind)


def table_row(
    name: str,
    plan_file: str | None,
    distilled: bool,
    cost: dict[str, float],
    evaluation: Evaluation,
    dense: Evaluation,
) -> dict:
    """Returns one row of table.json.

    Args:
        plan_file: path of its plan in the run's folder; None for the dense model.
        cost: its costs, as shares of the dense model's.
        evaluation: its answers.
        dense: the dense model's answers.
    """
    return {
        "name": name,
        "plan": plan_file,
        "distilled": distilled,
        "visual_flops": cost["visual_flops"],
        "model_flops": cost["model_flops"],
        "accuracy": evaluation.accuracy,
        "low": evaluation.low,
        "high": evaluation.high,
        "relative_accuracy": relative_accuracy(evaluation, dense),
        "families": {family: score.accuracy for family, score in evaluation.families.items()},
    }
