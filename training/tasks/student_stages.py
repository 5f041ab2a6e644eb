"""The stages in which students are distilled and evaluated, and what they need.

Each stage reads what earlier stages left in the run's folder, and leaves its own files there
(training/tasks/run_folder.py).
"""

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, ProcessorMixin

from data.collator import Collator
from data.dataset import ConversationDataset
from data.streaming import StreamedDataset
from modeling.user_error import UserError
from training.distillation.datasets import mixture, streamed, training_collator, training_split, validation_of
from training.distillation.monitoring.validation import Validation
from training.distillation.students import (
    dense_processor,
    dense_student,
    train_student,
    trained_student,
    untrained_student,
)
from training.distillation.teacher_answers import AnsweredDataset, write_teacher_answers
from training.evaluation.answer_files import write_answer_files
from training.evaluation.asking import check_prompts, evaluate
from training.evaluation.kept_answers import KeptAnswers
from training.evaluation.questions import Asked, asked_of, digest, read_benchmarks
from training.evaluation.results import Evaluation
from training.gates.learning import learned_adapters
from training.ranks import from_rank_0
from training.recipe.gates import GateSettings
from training.recipe.race import RaceSettings
from training.recipe.student import CompareSettings
from training.run import Run, device, is_main_process
from training.tasks.run_folder import (
    ANSWERS,
    GREY,
    data_folder,
    evaluation_path,
    gates_folder,
    load_plan,
    student_folder,
)
from training.tasks.shared_plans import name_of_learned_plan, recipe_of_student


class TrainingData(NamedTuple):
    """What students and gates are trained on."""

    dataset: ConversationDataset | AnsweredDataset | StreamedDataset
    """The training data, with the teacher's answers if the recipe keeps them."""
    collator: Collator
    """Makes batches of its samples."""
    validation: Validation | None
    """What is held out of it, if anything."""


def ask_teacher(run: Run) -> dict:
    """Writes the teacher's answers to the training data."""
    recipe = run.recipe
    model, processor = dense_student(recipe.model), dense_processor(recipe.model)
    write_teacher_answers(
        model,
        mixture(recipe, "train", processor, data_folder(run)),
        Collator(processor),
        run.directory / ANSWERS,
        batch_size=recipe.training.micro_batch_size,
        autocast=torch.bfloat16 if recipe.training.precision == "bfloat16" else None,
    )
    return {}


def distil(run: Run) -> dict:
    """Trains every student that is distilled. All processes execute it together."""
    data = training_data(run)
    for student in run.recipe.students:
        if student.distil:
            train_by_own_plan(run, _with_own_plan(run, student), data)
    return {}


def train_by_own_plan(run: Run, student: CompareSettings, data: TrainingData, pause_at: int | None = None) -> None:
    """Trains a student, or a candidate of a race. All processes execute it together.

    Args:
        student: the student. Its plan is no race.
        pause_at: as for `train_student`.
    """
    recipe = run.recipe
    adapters = None
    # The student continues with the adapters that were learned together with its gates. Full fine-tuning has no
    # adapters.
    if isinstance(student.plan, GateSettings) and recipe.lora is not None:
        adapters = learned_adapters(gates_folder(run, name_of_learned_plan(recipe, student)))
    train_student(
        recipe_of_student(recipe, student),
        load_plan(run, student.name),
        data.dataset,
        data.collator,
        student_folder(run, student.name),
        adapters,
        data.validation,
        pause_at,
    )


def _with_own_plan(run: Run, student: CompareSettings) -> CompareSettings:
    """Returns the student with the settings of its plan: those of the winner, where a race decided."""
    if not isinstance(student.plan, RaceSettings):
        return student
    winner = run.result("race")["students"][student.name]["winner"]
    return student.model_copy(update={"plan": student.plan.candidates[winner]})


def training_data(run: Run) -> TrainingData:
    """Returns what the recipe trains on."""
    processor = dense_processor(run.recipe.model)
    dataset: ConversationDataset | AnsweredDataset | StreamedDataset
    if run.recipe.data.is_streamed:
        dataset, validation = streamed(run.recipe, processor), None
    else:
        dataset, held_out = training_split(run.recipe, processor, data_folder(run))
        validation = validation_of(run.recipe, held_out, processor)
        if run.recipe.distillation.keep_answers:
            dataset = AnsweredDataset(dataset, run.directory / ANSWERS)
    return TrainingData(dataset, training_collator(dataset, processor), validation)


def load_student(run: Run, student: CompareSettings) -> PreTrainedModel:
    """Returns the student as this run made it, on the CPU."""
    plan = load_plan(run, student.name)
    if not student.distil:
        return untrained_student(run.recipe.model, plan)
    return trained_student(run.recipe, plan, student_folder(run, student.name))


def questions_of(run: Run, processor: ProcessorMixin) -> list[Asked]:
    """Returns the questions that all models are asked.

    Raises:
        UserError: a benchmark cannot be read or shown to the model, or no answer could be scored.
    """
    data = run.recipe.data
    asked = [part for settings in data.benchmarks for part in read_benchmarks(settings)]
    if data.rows_to_ask:
        asked.append(asked_of(mixture(run.recipe, "evaluation", processor, data_folder(run)).samples))
    if not any(question.answers for part in asked for question in part.questions):
        raise UserError(
            f"data.evaluation: the true answers of {', '.join(part.benchmark.name for part in asked)} are not "
            "published; name a benchmark beside that can be scored"
        )
    check_prompts(asked, processor)
    return asked


def evaluate_once(
    run: Run,
    name: str,
    load: Callable[[], PreTrainedModel],
    processor: ProcessorMixin,
    asked: Sequence[Asked],
) -> Evaluation:
    """Returns the evaluation of a model. It is read from its file if an earlier start of the run has written it.

    Every process calls this, and answers its share of the questions. Answers are kept meanwhile.

    Args:
        name: name of the file. `GREY` means that the model is shown grey pictures.
        load: returns the model. It is called only if the model is asked.

    Raises:
        UserError: the file answers other questions, as the benchmarks' files have changed since.
    """
    path = evaluation_path(run, name)
    found = from_rank_0(Evaluation.load(path) if is_main_process() and path.exists() else None)
    questions = [(part.benchmark.name, question.id, question.text) for part in asked for question in part.questions]
    if found is not None and questions != [(one.benchmark, one.id, one.question) for one in found.records]:
        raise UserError(f"{path}: answers other questions than data.evaluation has now; remove it, or restore the data")
    settings = run.recipe.evaluation
    said = [digest(asked), settings.batch_size, settings.max_new_tokens]
    kept = KeptAnswers(path.parent / "kept" / name, json.dumps(said))
    if found is None:
        found = evaluate(
            load().to(device()),
            processor,
            asked,
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
            pixel_transform="grey" if name == GREY else None,
            kept=kept,
            title=name,
        )
        if is_main_process():
            write_answer_files(found, path.with_suffix(""), name)
            found.save(path)
    kept.remove()  # also what a killed start has left beside the evaluation
    return found
