"""The stages that every run of students begins with, from the data to the plans."""

import torch
from transformers import ProcessorMixin

from checkpoints.families import sparse_class
from data.dataset import ConversationDataset
from training.distillation.datasets import (
    index_data,
    mixture,
    record_benchmark_files,
    refuse_other_shown_files,
    roles_with_rows,
    streamed,
    whole_mixture,
)
from training.distillation.monitoring.trackers import refuse_missing_trackers
from training.distillation.monitoring.validation import hold_out
from training.distillation.students import dense_processor, limited_config
from training.evaluation.held_out import refuse_shared_files, refuse_shared_samples
from training.files import write_json
from training.recipe.gates import GateSettings
from training.recipe.student import SparsifyRecipe, StudentRecipe
from training.run import Run, Stage, console
from training.tasks.answers_size import answers_size, refuse_too_many_answers
from training.tasks.plan_stages import find_plans, harden_plans, learn_plans, measure_dense
from training.tasks.publishing.publish import check_publishing
from training.tasks.race import race
from training.tasks.run_folder import data_folder
from training.tasks.shared_plans import bounds_latency, races, reads_statistics, students_to_learn, with_own_plans
from training.tasks.starting_point import check_starting_point, dense_in_words, name_of
from training.tasks.student_stages import ask_teacher, questions_of


def stages_before_students(recipe: StudentRecipe) -> list[Stage]:
    """Returns the stages that every run of students begins with, up to their plans.

    Plans that are found come before plans that are learned. So a budget that cannot be met is refused before anything
    is trained.
    """
    stages = [Stage("data", "read and check the data", read_data, look_again=look_at_files_again)]
    learned = students_to_learn(recipe)
    if reads_statistics(recipe) or bounds_latency(recipe):
        has_start = any(student.plan.start is not None for student in learned)
        title = "measure the dense model" + (", and find the plans that learning starts from" if has_start else "")
        stages.append(Stage("calibrate", title, measure_dense, distributed=True))
    if any(not isinstance(student.plan, GateSettings) for student in with_own_plans(recipe)):
        stages.append(Stage("plan", "find the plans", find_plans, distributed=True))
    if recipe.distillation.keep_answers:
        stages.append(Stage("ask", "ask the dense model for all its answers", ask_teacher, distributed=True))
    if learned:
        stages.append(Stage("learn", "learn which visual work is needed", learn_plans, distributed=True))
        stages.append(Stage("harden", "harden what was learned into plans", harden_plans, distributed=True))
    if races(recipe):
        stages.append(Stage("race", "race the candidates", race, distributed=True))
    return stages


def read_data(run: Run) -> dict:
    """Reads, checks and encodes every row that a later stage reads. Writes which rows are left out, and counts them.

    Raises:
        UserError: as `check_starting_point`, or the data is bad, an answer could not be scored, a tracker of the
            training is not installed, the checkpoint could not be published, or the disk is too small for the answers
            that are to be kept.
    """
    recipe = run.recipe
    check_starting_point(recipe)
    teacher = dense_in_words(recipe.model)
    if teacher is not None:
        console.print(f"goes on from {name_of(recipe.model.path)}; its dense model: {teacher}", soft_wrap=True)
    if isinstance(recipe, SparsifyRecipe):
        check_publishing(recipe)
    refuse_missing_trackers(recipe.training.report_to)
    processor = dense_processor(recipe.model)
    index_data(recipe, processor, data_folder(run))
    used, left_out = {}, {}
    if recipe.validation is not None:
        used["validation"] = recipe.validation.num_samples
    if recipe.data.is_streamed:
        next(iter(streamed(recipe, processor)))  # what is wrong with the first rows is said now
        console.print("train: streamed, its rows are checked when their turn comes", soft_wrap=True)
    asked = questions_of(run, processor)
    for part in asked:
        if part.place is not None:  # rows are counted as samples
            used[part.benchmark.name] = len(part.questions)
            console.print(f"{part.benchmark.name}: {len(part.questions):,} questions", soft_wrap=True)
    held_out = mixture(recipe, "evaluation", processor, data_folder(run)) if recipe.data.rows_to_ask else None
    for role in roles_with_rows(recipe):
        dataset, rest = whole_mixture(recipe, role, processor, data_folder(run))
        if role != "evaluation":
            refuse_shared_files(asked, dataset.files(), role)
            if held_out is not None:
                refuse_shared_samples(held_out, dataset, role)
        if role == "train" and recipe.validation is not None:
            dataset, _ = hold_out(dataset, recipe.validation.num_samples, recipe.seed)
        if role == "train" and recipe.distillation.keep_answers:
            refuse_too_many_answers(_answers_size(recipe, dataset, processor), run.directory)
        used[role], left_out[role] = len(dataset), {"counts": rest.counts(), "rows": rest.rows()}
        console.print(f"{role}: {len(dataset):,} samples{_in_words(rest.counts())}", soft_wrap=True)
    record_benchmark_files(asked, data_folder(run))
    write_json(run.directory / "left_out.json", left_out)
    counts = {role: rest["counts"] for role, rest in left_out.items()}
    return {
        "used": used,
        "left_out": counts,
        "goes_on": teacher and {"from": name_of(recipe.model.path), "dense": teacher},
    }


def look_at_files_again(run: Run) -> None:
    """Raises UserError if a picture or a video has changed since the data was read."""
    refuse_other_shown_files(run.recipe, data_folder(run))


def _in_words(counts: dict[str, int]) -> str:
    """Returns what a line says of rows that are left out."""
    return "".join(f"; left out: {count:,} ({kind})" for kind, count in counts.items())


def _answers_size(recipe: StudentRecipe, dataset: ConversationDataset, processor: ProcessorMixin) -> int:
    """Returns the bytes of the teacher's answers to the training data."""
    config = limited_config(recipe.model)
    visual = sparse_class(config).visual_tokens(config)
    computed_in = "bfloat16" if recipe.training.precision == "bfloat16" else recipe.model.dtype
    return answers_size(dataset, processor, config, list(visual.values()), getattr(torch, computed_in).itemsize)
