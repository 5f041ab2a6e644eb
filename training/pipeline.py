"""The story of `task: sparsify`: from a dense model to an exported sparse one, and what that cost and kept.

Each stage is one function; it reads what earlier stages left in the run's folder and leaves its own there:

    gates/NAME/              what was learned for the plan of each student whose plan is learned (training/gate_learning.py)
    plans/NAME.json          the plan of each student, with lists of units of the dense model
    students/NAME/           the training of each distilled student
    evaluation/NAME.json     each model's answers to the held-out questions
    checkpoint/              the student, exported
    plan.json, cost.json, table.json, metrics.jsonl, benchmark.json, result.json, report.html
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from checkpoints.build import dense_config
from checkpoints.card import base_license, model_card
from checkpoints.export import export_checkpoint
from checkpoints.load import load_checkpoint
from data.collator import Collator
from data.conversations import Sample
from modeling.modeling_sparse_llava import SparseLlavaForConditionalGeneration
from modeling.visual_plan import VisualPlan
from training.benchmark import benchmark
from training.calibration import Calibration, calibrate
from training.costs import TEXT_TOKENS, cost_sheet, fractions
from training.datasets import calibration_batches, mixture
from training.evaluation import Evaluation, evaluate, relative_accuracy
from training.gate_learning import gated_student, hardened_plan, learn_gates
from training.pictures import plan_picture, save
from training.planners import find_plan
from training.planners.gates import GateSettings
from training.recipe import STUDENT, CompareSettings, SparsifyRecipe
from training.report import write_report
from training.run import Run, Stage, console, is_main_process, write_json
from training.students import load_model, load_processor, train_student, trained_student, untrained_student
from training.tables import models_table
from training.teacher_answers import AnsweredDataset, keep_answers

TEACHER, GREY = "teacher", "grey"
"""The dense model's answers, and its answers to grey pictures, among the evaluations."""
ANSWERS = "teacher_answers.safetensors"
CALIBRATION = "calibration.safetensors"
DENSE_COST = {"visual_flops": 1.0, "model_flops": 1.0}
"""The stock model's; the dense plan already costs less, as it leaves dead work out."""


def stages(recipe: SparsifyRecipe) -> list[Stage]:
    """The stages of a run, in order."""
    ask = [Stage("ask", "ask the dense model for all its answers", ask_teacher)]
    learn = [Stage("learn", "learn which visual work is needed", learn_plans, distributed=True)]
    return [
        Stage("data", "read and check the data", read_data),
        Stage("calibrate", "measure how the dense model sees", measure),
        *(ask if recipe.distillation.keep_answers else []),
        *(learn if learned_rows(recipe) else []),
        Stage("plan", "find the plans", find_plans),
        Stage("distil", "distil the students", distil, distributed=True),
        Stage("evaluate", "ask all models held-out questions", evaluate_all),
        Stage("export", "export, and reload in a fresh process", export),
        Stage("benchmark", "time dense against sparse", measure_speed),
        Stage("report", "write the report", report),
    ]


def rows(recipe: SparsifyRecipe) -> list[CompareSettings]:
    """The students of the report's table: the recipe's own first."""
    return [CompareSettings(name=STUDENT, plan=recipe.plan, distil=True), *recipe.compare]


def learned_rows(recipe: SparsifyRecipe) -> dict[str, GateSettings]:
    """The settings of each plan that is learned, by the name of the first student that has it."""
    found: dict[str, GateSettings] = {}
    for row in rows(recipe):
        settings = row.plan or recipe.plan
        if isinstance(settings, GateSettings) and settings not in found.values():
            found[row.name] = settings
    return found


def read_data(run: Run) -> dict:
    """All that is read later is read once now: bad data stops the run before hours of work."""
    recipe = run.recipe
    processor = load_processor(recipe.model)
    used, left_out = {}, {}
    for role in ("train", "calibration", "evaluation"):
        dataset = mixture(recipe, role, processor)
        used[role], left_out[role] = len(dataset), [*dataset.bad, *dataset.too_long]
    write_json(run.directory / "left_out.json", {role: [asdict(one) for one in bad] for role, bad in left_out.items()})
    return {"used": used, "left_out": {role: len(bad) for role, bad in left_out.items()}}


def measure(run: Run) -> dict:
    """Fills the calibration cache that the planners read, and finds the plans that learning starts from."""
    recipe = run.recipe
    model, processor = dense_student(recipe)
    batches = calibration_batches(recipe, processor)
    statistics = calibrate(model, batches, run.directory / "calibration")
    statistics.save(run.directory / CALIBRATION)
    for name, settings in learned_rows(recipe).items():
        start = VisualPlan.dense(model.config.text_config.num_hidden_layers)
        if settings.start is not None:
            start = find_plan(model, batches, statistics, settings.start)
        gates_folder(run, name).mkdir(parents=True, exist_ok=True)
        start.save(gates_folder(run, name) / "start.json")
        gated_student(recipe, settings, statistics, start)  # refuses now what learning would refuse
    return {"read_share": statistics.read_share.tolist()}


def ask_teacher(run: Run) -> dict:
    """Keeps the dense model's answers to the training data."""
    recipe = run.recipe
    model, processor = dense_student(recipe)
    keep_answers(
        model,
        mixture(recipe, "train", processor),
        Collator(processor),
        run.directory / ANSWERS,
        batch_size=recipe.training.micro_batch_size,
        autocast=torch.bfloat16 if recipe.training.precision == "bfloat16" else None,
    )
    return {}


def learn_plans(run: Run) -> dict:
    """Trains gates and LoRA for every plan that is learned; all processes together."""
    recipe = run.recipe
    processor = load_processor(recipe.model)
    dataset, collator = training_data(run, processor), Collator(processor)
    statistics = Calibration.load(run.directory / CALIBRATION)
    for name, settings in learned_rows(recipe).items():
        learn_gates(recipe, settings, statistics, dataset, collator, gates_folder(run, name))
    return {}


def find_plans(run: Run) -> dict:
    """One plan per student; students with the same planner settings share it."""
    recipe = run.recipe
    model, processor = dense_student(recipe)
    batches = calibration_batches(recipe, processor)
    statistics = Calibration.load(run.directory / CALIBRATION)
    (run.directory / "plans").mkdir(exist_ok=True)
    found: dict[str, VisualPlan] = {}
    for row in rows(recipe):
        settings = row.plan or recipe.plan
        key = settings.model_dump_json()
        if key not in found and isinstance(settings, GateSettings):
            found[key] = hardened_plan(recipe, settings, statistics, batches, gates_folder(run, row.name))
        elif key not in found:
            found[key] = find_plan(model, batches, statistics, settings)
        found[key].save(plan_path(run, row.name))
    plan = load_plan(run, STUDENT)
    plan.save(run.directory / "plan.json")
    write_json(run.directory / "cost.json", cost_sheet(plan, model.config, model.dtype.itemsize))
    return {row.name: fractions(load_plan(run, row.name), model.config) for row in rows(recipe)}


def distil(run: Run) -> dict:
    """Trains every student that is to be distilled; all processes together."""
    recipe = run.recipe
    processor = load_processor(recipe.model)
    dataset, collator = training_data(run, processor), Collator(processor)
    for row in rows(recipe):
        if row.distil:
            train_student(recipe, load_plan(run, row.name), dataset, collator, student_folder(run, row.name))
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
    for row in rows(recipe):
        plan = load_plan(run, row.name)
        model = trained_student(recipe, plan, student_folder(run, row.name)) if row.distil else untrained_student(recipe.model, plan)
        evaluation = evaluation_of(run, row.name, model, processor, samples)
        plan_file = str(plan_path(run, row.name).relative_to(run.directory))
        table.append(table_row(row.name, plan_file, row.distil, fractions(plan, dense.config), evaluation, teacher))
    table.append(table_row("dense, grey pictures", None, False, DENSE_COST, grey, teacher))
    write_json(run.directory / "table.json", table)
    return {row["name"]: row["accuracy"] for row in table}


def export(run: Run) -> dict:
    """Writes the student as a checkpoint that stands on its own; `export_checkpoint` fails where a reload differs."""
    recipe = run.recipe
    plan = load_plan(run, STUDENT)
    model = trained_student(recipe, plan, student_folder(run, STUDENT)).to(device())
    processor = load_processor(recipe.model)
    cost = json.loads((run.directory / "cost.json").read_text(encoding="utf-8"))
    picture = run.directory / "plan.png"
    save(plan_picture(plan, cost["num_units"], cost["intermediate_size"], cost["layers"]), picture)
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


# ---- parts of the stages ----


def plan_path(run: Run, name: str) -> Path:
    return run.directory / "plans" / f"{name}.json"


def training_data(run: Run, processor: ProcessorMixin) -> Dataset:
    """The training samples, with the teacher's answers where these are kept."""
    dataset = mixture(run.recipe, "train", processor)
    return AnsweredDataset(dataset, run.directory / ANSWERS) if run.recipe.distillation.keep_answers else dataset


def gates_folder(run: Run, name: str) -> Path:
    return run.directory / "gates" / name


def load_plan(run: Run, name: str) -> VisualPlan:
    return VisualPlan.load(plan_path(run, name))


def student_folder(run: Run, name: str) -> Path:
    return run.directory / "students" / name


def evaluation_path(run: Run, name: str) -> Path:
    return run.directory / "evaluation" / f"{name}.json"


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dense_student(recipe: SparsifyRecipe) -> tuple[SparseLlavaForConditionalGeneration, ProcessorMixin]:
    """The dense model in the class that can run any plan, and its processor."""
    config = dense_config(recipe.model.path)
    model = untrained_student(recipe.model, VisualPlan.dense(config.text_config.num_hidden_layers))
    return model.to(device()), load_processor(recipe.model)


def evaluation_of(
    run: Run, name: str, model: PreTrainedModel, processor: ProcessorMixin, samples: list[Sample]
) -> Evaluation:
    """The model's evaluation, read where an earlier, stopped run has left it."""
    path = evaluation_path(run, name)
    if not path.exists():
        settings = run.recipe.evaluation
        evaluate(
            model.to(device()),
            processor,
            samples,
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
            pixel_transform="grey" if name == GREY else None,
            title=name,
        ).save(path)
    return Evaluation.load(path)


def table_row(
    name: str, plan_file: str | None, distilled: bool, cost: dict[str, float], evaluation: Evaluation, teacher: Evaluation
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
