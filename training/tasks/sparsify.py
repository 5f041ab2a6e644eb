"""The story of `task: sparsify`: from a dense model to an exported sparse one, and what that cost and kept.

After the stages that every run of students shares (training/tasks/stages.py), it leaves in the run's folder:

    checkpoint/              the student, exported
    plan.json, cost.json, table.json, metrics.jsonl, benchmark.json, result.json, report.html
"""

import json
import shutil

import torch

from checkpoints.build import dense_config
from checkpoints.card import base_license, model_card
from checkpoints.export import export_checkpoint
from checkpoints.load import load_checkpoint
from training.distillation.datasets import calibration_batches, mixture
from training.distillation.students import dense_processor, load_model, trained_student
from training.files import write_json
from training.measure.benchmark import benchmark
from training.measure.costs import TEXT_TOKENS, cost_sheet, fractions
from training.measure.evaluation import Evaluation, relative_accuracy
from training.recipe.student import STUDENT, SparsifyRecipe
from training.report.page import write_report
from training.report.plan_plots import plan_plot
from training.report.style import save
from training.report.tables import models_table
from training.run import Run, Stage, console, device, is_main_process
from training.tasks.run_folder import TEACHER, evaluation_path, load_plan, plan_path, student_folder
from training.tasks.stages import GREY, distil, evaluation_of, run_student, stages_before_students

DENSE_COST = {"visual_flops": 1.0, "model_flops": 1.0}
"""The stock model's; the dense plan already costs less, as it leaves dead work out."""


def stages(recipe: SparsifyRecipe) -> list[Stage]:
    """The stages of a run, in order."""
    return [
        *stages_before_students(recipe),
        Stage("cost", "count what the plan costs", count_cost),
        Stage("distil", "distil the students", distil_and_own, distributed=True),
        Stage("evaluate", "ask all models held-out questions", evaluate_all),
        Stage("export", "export, and reload in a fresh process", export),
        Stage("benchmark", "time dense against sparse", measure_speed),
        Stage("report", "write the report", report),
    ]


def count_cost(run: Run) -> dict:
    """The recipe's own plan beside the run's other results, and its costs."""
    plan, config = load_plan(run, STUDENT), dense_config(run.recipe.model.path)
    plan.save(run.directory / "plan.json")
    write_json(run.directory / "cost.json", cost_sheet(plan, config, getattr(torch, run.recipe.model.dtype).itemsize))
    return fractions(plan, config)


def distil_and_own(run: Run) -> dict:
    """Trains all, and shows the metrics of the recipe's own student beside the run's other results."""
    distil(run)
    if is_main_process():
        shutil.copyfile(student_folder(run, STUDENT) / "trainer" / "metrics.jsonl", run.directory / "metrics.jsonl")
    return {}


def evaluate_all(run: Run) -> dict:
    """Asks the dense model, the dense model without sight, and every student; leaves the report's table."""
    recipe = run.recipe
    dense, processor = load_model(recipe.model)
    samples = mixture(recipe, "evaluation", processor).samples
    teacher = evaluation_of(run, TEACHER, dense, processor, samples)
    grey = evaluation_of(run, GREY, dense, processor, samples)
    table = [table_row("dense", None, False, DENSE_COST, teacher, teacher)]
    for student in recipe.students:
        plan = load_plan(run, student.name)
        evaluation = evaluation_of(run, student.name, run_student(run, student), processor, samples)
        plan_file = str(plan_path(run, student.name).relative_to(run.directory))
        table.append(
            table_row(student.name, plan_file, student.distil, fractions(plan, dense.config), evaluation, teacher)
        )
    table.append(table_row("dense, grey pictures", None, False, DENSE_COST, grey, teacher))
    write_json(run.directory / "table.json", table)
    return {row["name"]: row["accuracy"] for row in table}


def export(run: Run) -> dict:
    """Writes the student as a checkpoint that stands on its own; `export_checkpoint` fails where a reload differs."""
    recipe = run.recipe
    plan = load_plan(run, STUDENT)
    model = trained_student(recipe, plan, student_folder(run, STUDENT)).to(device())
    processor = dense_processor(recipe.model)
    cost = json.loads((run.directory / "cost.json").read_text(encoding="utf-8"))
    picture = run.directory / "plan.png"
    save(plan_plot(plan, cost["num_units"], cost["intermediate_size"], cost["layers"]), picture)
    card = model_card(
        recipe.name,
        model.visual_plan,
        model.config,
        base_model=recipe.model.path,
        base_license=base_license(recipe.model.path),
        rows=json.loads((run.directory / "table.json").read_text(encoding="utf-8")),
        picture=picture.name,
    )
    probe = calibration_batches(recipe, processor)[0]
    del probe["labels"]
    export_checkpoint(model, processor, run.directory / "checkpoint", card=card, probe=probe, picture=picture)
    return {"checkpoint": "checkpoint"}


def measure_speed(run: Run) -> dict:
    """Prefill and decode of the exported weights, dense and sparse in turn."""
    model, _ = load_checkpoint(run.directory / "checkpoint", "auto")
    figures = benchmark(
        model.to(device()), text_tokens=TEXT_TOKENS, batch_sizes=[1], decode_tokens=16, repeats=5, say=console.print
    )
    write_json(run.directory / "benchmark.json", figures)
    return {"prefill_speedup": figures["batches"][0]["prefill"]["speedup"]}


def report(run: Run) -> dict:
    """result.json, and the page for people."""
    teacher, student = (Evaluation.load(evaluation_path(run, name)) for name in (TEACHER, STUDENT))
    plan = load_plan(run, STUDENT)
    done = [stage.name for stage in stages(run.recipe) if stage.name != "report"]
    result = {
        "teacher_accuracy": teacher.accuracy,
        "student_accuracy": student.accuracy,
        "relative_accuracy": relative_accuracy(student, teacher),
        **fractions(plan, dense_config(run.recipe.model.path)),
        "prefill_speedup": run.result("benchmark")["prefill_speedup"],
        "seconds": {name: run.result(name)["seconds"] for name in done},
    }
    write_json(run.directory / "result.json", result)
    path = write_report(run.directory)
    console.print(models_table(json.loads((run.directory / "table.json").read_text(encoding="utf-8"))))
    console.print(f"report: {path}", soft_wrap=True)
    return {"report": path.name}


def table_row(
    name: str,
    plan_file: str | None,
    distilled: bool,
    cost: dict[str, float],
    evaluation: Evaluation,
    teacher: Evaluation,
) -> dict:
    """One row of table.json; costs are shares of the dense model's."""
    return {
        "name": name,
        "plan": plan_file,
        "distilled": distilled,
        "visual_flops": cost["visual_flops"],
        "model_flops": cost["model_flops"],
        "accuracy": evaluation.accuracy,
        "low": evaluation.low,
        "high": evaluation.high,
        "relative_accuracy": relative_accuracy(evaluation, teacher),
        "families": {family: score.accuracy for family, score in evaluation.families.items()},
    }
