"""The stages of `task: dense`, which trains a small dense LLaVA from scratch on the embedded world.

Each stage writes its result in the run's folder, and the next stage reads it there:

    data/                    the encoded questions of each phase
    processor/               the processor. Its vocabulary is the words of the world
    tower/model/             the model after the training of its vision tower (training/tiny_llava/tower.py)
    phases/NAME/model/       the model after each phase of questions, easy pictures first
    evaluation/teacher.json  answers of the dense model to the held-out questions
    evaluation/grey.json     its answers to the same questions if it is shown grey pictures
    checkpoint/              the dense model in bfloat16, an ordinary Hugging Face folder. It is copied to the recipe's
                             `teacher.output`
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    ProcessorMixin,
    TrainingArguments,
    set_seed,
)

from checkpoints.whole_folder import whole_folder
from data.collator import Collator
from data.dataset import ConversationDataset
from data.index.build import build_indexes
from data.index.index import Index
from data.shapes.patches import GROUPS
from data.shapes.world import WORLDS, split_rows, write_world
from data.sources.reading import load_samples
from data.sources.source import Source
from modeling.user_error import UserError
from training import stops
from training.distillation.callbacks import MetricsFile
from training.distillation.sample_order import OrderedTrainer
from training.distillation.trainer_checkpoints import TrainerCheckpoints, delete_checkpoints, last_checkpoint
from training.evaluation.asking import evaluate
from training.evaluation.questions import Asked, asked_of
from training.evaluation.results import Evaluation
from training.files import reading, writing
from training.recipe.dense import DenseRecipe, OptimizerSettings, PhaseSettings
from training.report.tables import families_table
from training.run import Run, Stage, console, device, is_main_process
from training.tiny_llava.independent_turns import MASKED_ATTENTION, independent_turns
from training.tiny_llava.model import build_model, build_processor
from training.tiny_llava.tower import PatchDataset, PatchReader

TRAIN_AGAIN = "delete it and the result in stages/ of the training that made it, and it is made again"
"""What can be done about damaged weights."""


def stages(recipe: DenseRecipe) -> list[Stage]:
    """Returns the stages of a run, in order."""
    phases = recipe.teacher.phases
    starts = ["tower", *(f"phases/{phase.name}" for phase in phases)]
    return [
        Stage("world", "write the embedded world", write_world_files),
        Stage("tower", "teach the vision tower to see", train_tower, distributed=True),
        *(
            Stage(
                phase.name, f"questions: {phase.name}", partial(train_phase, phase=phase, start=start), distributed=True
            )
            for phase, start in zip(phases, starts, strict=False)
        ),
        Stage("evaluate", "ask the held-out questions", evaluate_dense_model, distributed=True),
        Stage("export", "export the dense model", export),
    ]


def write_world_files(run: Run) -> dict:
    """Writes the pictures and questions of the world, and a processor whose vocabulary is the words of the world.

    The questions of each phase are encoded.
    """
    settings = run.recipe.teacher
    paths = write_world(WORLDS, settings.world)
    rows = [row for path in paths.values() for row in json.loads(path.read_text(encoding="utf-8"))]
    texts = {message["value"].removeprefix("<image>\n") for row in rows for message in row["conversations"]}
    texts |= {word.strip() for words in GROUPS.values() for word in words}  # a small world may lack some of them
    build_processor(settings.model, sorted(texts)).save_pretrained(run.directory / "processor")
    splits = sorted({phase.split for phase in settings.phases})
    sources = [Source(path=paths[split], images=paths[split].parent) for split in splits]
    indexes = build_indexes(sources, load_processor(run), run.directory / "data", decode=False)
    return {
        "rows": {name: split.rows for name, split in settings.world.splits.items()},
        "indexes": {split: index.name for split, index in zip(splits, indexes, strict=True)},
    }


def train_tower(run: Run) -> dict:
    """Trains vision tower and projector on the scenes of a split. All other weights stay as they were initialised."""
    settings, seed = run.recipe.teacher, run.recipe.seed
    processor = load_processor(run)
    set_seed(seed)
    model = build_model(settings.model, processor, settings.max_length)
    split = settings.world.splits[settings.tower.split]
    scenes = [scene for scene, _, _ in split_rows(settings.tower.split, split, settings.world.seed)]
    reader = PatchReader(model, processor)
    folder = run.directory / "tower"
    trainer = OrderedTrainer(
        model=reader,
        args=training_arguments(settings.tower, folder / "trainer", seed),
        train_dataset=PatchDataset(scenes, processor),
        callbacks=[MetricsFile(folder / "metrics.jsonl"), TrainerCheckpoints()],
    )
    return train_and_save(trainer, model.save_pretrained, folder)


def train_phase(run: Run, phase: PhaseSettings, start: str) -> dict:
    """Trains one phase of questions.

    Args:
        phase: settings of the phase.
        start: folder of the stage before, within the run's folder. Its model is trained further.
    """
    settings = run.recipe.teacher
    processor = load_processor(run)
    folder = run.directory / "phases" / phase.name
    # Trainer cannot load these weights, as files have the older names of published LLaVA checkpoints.
    weights = last_checkpoint(folder / "trainer") or run.directory / start / "model"
    with reading(weights, TRAIN_AGAIN):
        model = LlavaForConditionalGeneration.from_pretrained(weights, dtype=torch.float32)
    path = write_world(WORLDS, settings.world)[phase.split]
    name = run.result("world")["indexes"][phase.split]
    index = Index(run.directory / "data" / name, Source(path=path, images=path.parent))
    rows = np.flatnonzero(index.is_good & (index.lengths <= settings.max_length))
    dataset = ConversationDataset([index], np.zeros_like(rows), rows, processor)
    collator = Collator(processor)
    arguments = training_arguments(phase, folder / "trainer", run.recipe.seed)
    text, tower, projector = model.model.language_model, model.model.vision_tower, model.model.multi_modal_projector
    if phase.turns == "independent" and not torch.cuda.is_available():
        text.set_attn_implementation(MASKED_ATTENTION)
    groups = [
        ([text.layers, text.norm], phase.learning_rate),
        ([text.embed_tokens], phase.word_learning_rate),
        ([tower, projector], phase.tower_learning_rate),
    ]
    nn.ModuleList([tower, projector]).requires_grad_(phase.tower_learning_rate > 0)
    optimizer = torch.optim.AdamW(
        [{"params": list(nn.ModuleList(modules).parameters()), "lr": rate} for modules, rate in groups],
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        weight_decay=phase.weight_decay,
    )
    trainer = OrderedTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=(
            (lambda encoded: independent_turns(collator(encoded), processor.image_token_id))
            if phase.turns == "independent"
            else collator
        ),
        optimizers=(optimizer, None),
        callbacks=[MetricsFile(folder / "metrics.jsonl"), TrainerCheckpoints()],
    )
    return train_and_save(trainer, model.save_pretrained, folder)


def evaluate_dense_model(run: Run) -> dict:
    """Asks the model the held-out questions, with their pictures and with grey ones. Returns both accuracies.

    Ranks share the questions. The weights are rounded to bfloat16, as in the checkpoint.
    """
    settings = run.recipe.teacher
    processor = load_processor(run)
    model = load_trained_model(run).float().eval().to(device())
    path = write_world(WORLDS, settings.world)[settings.evaluation_split]
    samples, _ = load_samples(Source(path=path, images=path.parent))
    return ask_seeing_and_blind(run, model, processor, asked_of(samples), settings.evaluation_batch_size)


def export(run: Run) -> dict:
    """Writes the dense model as a Hugging Face folder, and copies it to the recipe's `teacher.output`.

    If the process is killed meanwhile, no folder is left incomplete.
    """
    output = run.recipe.teacher.output
    checkpoint = run.directory / "checkpoint"
    with writing(checkpoint), whole_folder(checkpoint) as folder:
        load_trained_model(run).save_pretrained(folder)
        load_processor(run).save_pretrained(folder)
        (folder / "README.md").write_text(model_card(run), encoding="utf-8")
    with whole_folder(output) as folder:
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    return {"output": str(output)}


# ---- what the stages use ----


def ask_seeing_and_blind(
    run: Run, model: PreTrainedModel, processor: ProcessorMixin, asked: Asked, batch_size: int
) -> dict[str, float]:
    """Asks a model questions with their pictures (`teacher`) and with grey ones (`grey`). Every rank calls this.

    The answers are written to `evaluation/`, and shown. Returns both accuracies, in [0, 1].
    """
    evaluations = {}
    for name, transform in (("teacher", None), ("grey", "grey")):
        evaluations[name] = evaluate(
            model, processor, [asked], batch_size=batch_size, pixel_transform=transform, title=name
        )
        if is_main_process():
            (run.directory / "evaluation").mkdir(exist_ok=True)
            evaluations[name].save(run.directory / "evaluation" / f"{name}.json")
    if is_main_process():
        console.print(families_table(evaluations))
    return {name: evaluation.accuracy for name, evaluation in evaluations.items()}


def training_arguments(settings: OptimizerSettings, output_dir: Path, seed: int) -> TrainingArguments:
    """Returns optimizer settings as transformers' `TrainingArguments`."""
    return TrainingArguments(
        output_dir=str(output_dir),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.micro_batch_size,
        learning_rate=settings.learning_rate,
        **schedule(settings),
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        adam_beta2=0.98,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_steps=50,
        logging_nan_inf_filter=False,
        save_steps=settings.save_steps,
        remove_unused_columns=False,
        ddp_find_unused_parameters=True,  # LLaVA does not use the tower's last norm
        report_to=[],
        seed=seed,
    )


def schedule(settings: OptimizerSettings) -> dict[str, Any]:
    """Returns the schedule of the learning rate as transformers' `TrainingArguments` take it."""
    if settings.lr_schedule != "cosine_at_last":
        return {"lr_scheduler_type": settings.lr_schedule}
    shape = {"num_decay_steps": settings.steps - settings.steps // 2, "decay_type": "cosine"}
    return {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": shape}


def load_processor(run: Run) -> LlavaProcessor:
    """Returns the processor of this run."""
    return AutoProcessor.from_pretrained(run.directory / "processor", trust_remote_code=False)


def load_trained_model(run: Run) -> LlavaForConditionalGeneration:
    """Returns the model after the last phase, in bfloat16."""
    last = run.recipe.teacher.phases[-1].name
    weights = run.directory / "phases" / last / "model"
    with reading(weights, TRAIN_AGAIN):
        return LlavaForConditionalGeneration.from_pretrained(weights, dtype=torch.bfloat16)


def train_and_save(trainer: OrderedTrainer, save: Callable[[Path], object], folder: Path) -> dict:
    """Trains to the end, and calls `save` with `folder`/model, where it writes. Returns the number of steps.

    If an earlier start of the run was stopped, training continues from its last checkpoint.

    Raises:
        UserError: a weight that was trained is not finite.
    """
    checkpoint = last_checkpoint(folder / "trainer")
    with stops.deferred():
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trained = (parameter for parameter in trainer.model.parameters() if parameter.requires_grad)
        if not all(parameter.isfinite().all() for parameter in trained):
            raise UserError(
                f"{folder.name}: the training has diverged, its weights are not finite; begin again with --restart and "
                "a lower learning_rate"
            )
        if trainer.is_world_process_zero():
            with writing(folder / "model"):
                save(folder / "model")
            delete_checkpoints(folder / "trainer")
            shutil.rmtree(folder / "trainer", ignore_errors=True)
    return {"steps": outcome.global_step}


def model_card(run: Run) -> str:
    """Returns the README of the model's folder."""
    dense, grey = (Evaluation.load(run.directory / "evaluation" / f"{name}.json") for name in ("teacher", "grey"))
    rows = [
        f"| {family} | {score.accuracy:.1%} | {score.low:.1%} to {score.high:.1%} "
        f"| {grey.families[family].accuracy:.1%} |"
        for family, score in dense.families.items()
    ]
    table = "\n".join(rows)
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# tiny-llava

A `LlavaForConditionalGeneration` in small, trained from scratch on the embedded world of Squint
(`data/shapes/world.py`): pictures of coloured shapes and a written sign, with questions in six families. It is the
dense model of the examples and tests.

    deepspeed train.py --recipe {run.recipe.name}.yaml

Generated answers to {dense.overall.count} held-out questions, and to the same questions about grey pictures:

| family | accuracy | 95 % interval | grey pictures |
|---|---|---|---|
{table}
| all | {dense.accuracy:.1%} | {dense.low:.1%} to {dense.high:.1%} | {grey.accuracy:.1%} |
"""
