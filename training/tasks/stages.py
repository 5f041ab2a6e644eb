"""The stages that every run of students shares, from the data to the distilled students.

Each reads what earlier stages left in the run's folder, and leaves its own there (training/tasks/run_folder.py).
"""

from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from checkpoints.build import dense_config
from data.collator import Collator
from data.conversations import Sample
from modeling.visual_plan import VisualPlan
from training.distillation.datasets import calibration_batches, mixture
from training.distillation.students import (
    dense_processor,
    dense_student,
    train_student,
    trained_student,
    untrained_student,
)
from training.distillation.teacher_answers import AnsweredDataset, write_teacher_answers
from training.files import write_json
from training.gates.learning import gated_student, hardened_plan, learn_gates, learned_adapters
from training.measure.calibration import Calibration, calibrate
from training.measure.costs import fractions
from training.measure.evaluation import Evaluation, evaluate
from training.measure.latency import measure_latency
from training.planners.tools.search import Search
from training.recipe.gates import GateSettings
from training.recipe.student import CompareSettings, StudentRecipe
from training.run import Run, Stage, device
from training.tasks.run_folder import (
    ANSWERS,
    CALIBRATION,
    GREY,
    LATENCY,
    evaluation_path,
    gates_folder,
    load_latency,
    load_plan,
    plan_path,
    search_folder,
    student_folder,
)


def stages_before_students(recipe: StudentRecipe) -> list[Stage]:
    """Returns the stages that every run of students begins with, up to their plans.

    Plans that are found come before plans that are learned. So a budget out of reach is refused before anything is trained.
    """
    searched = any(not isinstance(student.plan, GateSettings) for student in recipe.students)
    search = [Stage("plan", "find the plans", find_plans)] if searched else []
    measured = [Stage("calibrate", measuring_title(recipe), measure)] if measures(recipe) else []
    ask = [Stage("ask", "ask the dense model for all its answers", ask_teacher)]
    learn = [
        Stage("learn", "learn which visual work is needed", learn_plans, distributed=True),
        Stage("harden", "harden what was learned into plans", harden_plans),
    ]
    return [
        Stage("data", "read and check the data", read_data),
        *measured,
        *search,
        *(ask if recipe.distillation.keep_answers else []),
        *(learn if students_to_learn(recipe) else []),
    ]


def measures(recipe: StudentRecipe) -> bool:
    """Whether any plan asks for the dense model's statistics or for timings of this machine."""
    return reads_statistics(recipe) or bounds_latency(recipe)


def measuring_title(recipe: StudentRecipe) -> str:
    """Returns what the stage `calibrate` does, in words."""
    starts = any(student.plan.start is not None for student in students_to_learn(recipe))
    return "measure the dense model" + (", and find the plans that learning starts from" if starts else "")


def reads_statistics(recipe: StudentRecipe) -> bool:
    """Whether any plan asks for the dense model's statistics."""
    return any(student.plan.needs_statistics for student in recipe.students)


def bounds_latency(recipe: StudentRecipe) -> bool:
    """Whether any budget bounds latency."""
    return any(bound.measure == "latency" for student in recipe.students for bound in student.plan.bounds)


def students_to_learn(recipe: StudentRecipe) -> list[CompareSettings]:
    """Returns the students whose plans are learned; of those that share a plan, the first."""
    found: dict[str, CompareSettings] = {}
    for student in recipe.students:
        if isinstance(student.plan, GateSettings):
            found.setdefault(plan_key(student), student)
    return list(found.values())


def plan_key(student: CompareSettings) -> str:
    """Returns a key that is the same for students that have the same plan."""
    seed = student.seed if isinstance(student.plan, GateSettings) else None
    return f"{student.plan.model_dump_json()} {seed}"


def name_of_learned_plan(recipe: StudentRecipe, student: CompareSettings) -> str:
    """Returns the name of the student under which this student's plan is learned."""
    return next(one.name for one in students_to_learn(recipe) if plan_key(one) == plan_key(student))


def recipe_of_student(recipe: StudentRecipe, student: CompareSettings) -> StudentRecipe:
    """Returns the recipe with the student's own seed and training."""
    own = {"training": recipe.training_of(student)}
    return recipe.model_copy(update=own if student.seed is None else {**own, "seed": student.seed})


def read_data(run: Run) -> dict:
    """Reads and checks every sample that a later stage reads, and counts those that are left out."""
    recipe = run.recipe
    processor = dense_processor(recipe.model)
    used, left_out = {}, {}
    for role in ("train", "calibration", "evaluation"):
        dataset = mixture(recipe, role, processor)
        used[role], left_out[role] = len(dataset), [*dataset.bad, *dataset.too_long]
    write_json(run.directory / "left_out.json", {role: [asdict(one) for one in bad] for role, bad in left_out.items()})
    return {"used": used, "left_out": {role: len(bad) for role, bad in left_out.items()}}


def measure(run: Run) -> dict:
    """Leaves the statistics and timings that planners read, and the plans that learning starts from."""
    recipe = run.recipe
    model, processor = dense_student(recipe.model), dense_processor(recipe.model)
    if bounds_latency(recipe):
        measure_latency(model).save(run.directory / LATENCY)
    if not reads_statistics(recipe):
        return {}
    batches = calibration_batches(recipe, processor)
    statistics = calibrate(model, batches, run.directory / "calibration")
    statistics.save(run.directory / CALIBRATION)
    search = Search(model, batches, statistics, load_latency(run))
    starts = {None: VisualPlan.dense(model.config.text_config.num_hidden_layers)}
    for student in students_to_learn(recipe):
        if student.plan.start not in starts:  # seeds share it
            starts[student.plan.start] = student.plan.start.find(search)
        start = starts[student.plan.start]
        start.save(gates_folder(run, student.name) / "start.json")
        # Built and thrown away: it refuses now what learning would refuse after the search.
        gated_student(recipe, student.plan, statistics, start, search.latency)
    return {"read_share": statistics.read_share.tolist()}


def ask_teacher(run: Run) -> dict:
    """Keeps the dense model's answers to the training data."""
    recipe = run.recipe
    model, processor = dense_student(recipe.model), dense_processor(recipe.model)
    write_teacher_answers(
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
    processor = dense_processor(recipe.model)
    dataset, collator = training_data(run, processor), Collator(processor)
    statistics = Calibration.load(run.directory / CALIBRATION)
    for student in students_to_learn(recipe):
        learn_gates(
            recipe_of_student(recipe, student),
            student.plan,
            statistics,
            load_latency(run),
            dataset,
            collator,
            gates_folder(run, student.name),
        )
    return {}


def find_plans(run: Run) -> dict:
    """Leaves the plans that are found; students with the same planner settings share one."""
    model, processor = dense_student(run.recipe.model), dense_processor(run.recipe.model)
    statistics = Calibration.load(run.directory / CALIBRATION) if reads_statistics(run.recipe) else None
    search = Search(model, calibration_batches(run.recipe, processor), statistics, load_latency(run))

    def found(student: CompareSettings) -> VisualPlan:
        return student.plan.find(replace(search, folder=search_folder(run, student.name)))

    return _leave_plans(run, False, found)


def harden_plans(run: Run) -> dict:
    """The learned plans; students with the same settings and seed share one."""
    recipe = run.recipe
    batches = calibration_batches(recipe, dense_processor(recipe.model))
    statistics = Calibration.load(run.directory / CALIBRATION)

    def hardened(student: CompareSettings) -> VisualPlan:
        folder = gates_folder(run, student.name)
        return hardened_plan(
            recipe_of_student(recipe, student), student.plan, statistics, load_latency(run), batches, folder
        )

    return _leave_plans(run, True, hardened)


def distil(run: Run) -> dict:
    """Trains every student that is to be distilled; all processes together."""
    recipe = run.recipe
    processor = dense_processor(recipe.model)
    dataset, collator = training_data(run, processor), Collator(processor)
    for student in recipe.students:
        if student.distil:
            plan, folder = load_plan(run, student.name), student_folder(run, student.name)
            # What was learned beside the gates is where the student goes on; with full fine-tuning there is no place for it.
            goes_on = isinstance(student.plan, GateSettings) and recipe.lora is not None
            adapters = learned_adapters(gates_folder(run, name_of_learned_plan(recipe, student))) if goes_on else None
            train_student(recipe_of_student(recipe, student), plan, dataset, collator, folder, adapters)
    return {}


# ---- parts of the stages ----


def _leave_plans(run: Run, are_learned: bool, find: Callable[[CompareSettings], VisualPlan]) -> dict:
    """Finds and saves the plans of the students whose plan is, or is not, learned; returns their costs."""
    config = dense_config(run.recipe.model.path)
    found: dict[str, VisualPlan] = {}
    costs = {}
    for student in run.recipe.students:
        if isinstance(student.plan, GateSettings) is are_learned:
            key = plan_key(student)
            if key not in found:
                found[key] = find(student)
            path = plan_path(run, student.name)
            path.parent.mkdir(exist_ok=True)
            found[key].save(path)
            costs[student.name] = fractions(found[key], config)
    return costs


def training_data(run: Run, processor: ProcessorMixin) -> Dataset:
    """The training samples, with the teacher's answers where these are kept."""
    dataset = mixture(run.recipe, "train", processor)
    return AnsweredDataset(dataset, run.directory / ANSWERS) if run.recipe.distillation.keep_answers else dataset


def run_student(run: Run, student: CompareSettings) -> PreTrainedModel:
    """The student as it came out of the run, on the CPU."""
    plan = load_plan(run, student.name)
    if not student.distil:
        return untrained_student(run.recipe.model, plan)
    return trained_student(run.recipe, plan, student_folder(run, student.name))


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
