"""The story of `task: dense`: a small LLaVA trained from scratch on the embedded world.

Each stage leaves a whole model in the run's folder, where the next one finds it:

    processor/               its vocabulary is the world's
    tower/model/             the tower sees (training/tiny_llava/tower.py), the rest is as it was initialised
    phases/NAME/model/       after each phase of questions, easy pictures first
    evaluation/NAME.json     answers to the held-out questions: the teacher, and the teacher shown grey pictures
    checkpoint/              the teacher in bfloat16, an ordinary Hugging Face folder, also copied to `teacher.output`
"""

import json
import shutil
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Trainer,
    TrainingArguments,
    set_seed,
)

from data.collator import Collator
from data.conversations import load_llava_json
from data.dataset import ConversationDataset
from data.shapes.patches import GROUPS
from data.shapes.world import WORLDS, split_rows, write_world
from training.distillation.callbacks import MetricsFile, last_checkpoint
from training.measure.evaluation import Evaluation, evaluate
from training.recipe.dense import DenseRecipe, OptimizerSettings, PhaseSettings
from training.report.tables import families_table
from training.run import Run, Stage, console
from training.tiny_llava.independent_turns import MASKED_ATTENTION, independent_turns
from training.tiny_llava.model import build_model, build_processor
from training.tiny_llava.tower import PatchDataset, PatchReader


def stages(recipe: DenseRecipe) -> list[Stage]:
    """Returns the stages of a run, in order."""
    phases = recipe.teacher.phases
    starts = ["tower", *(f"phases/{phase.name}" for phase in phases)]
    return [
        Stage("world", "write the embedded world", write),
        Stage("tower", "teach the vision tower to see", train_tower, distributed=True),
        *(
            Stage(
                phase.name, f"questions: {phase.name}", partial(train_phase, phase=phase, start=start), distributed=True
            )
            for phase, start in zip(phases, starts, strict=False)
        ),
        Stage("evaluate", "ask the held-out questions", evaluate_teacher),
        Stage("export", "export the teacher", export),
    ]


def write(run: Run) -> dict:
    """The world as files, and the processor, whose vocabulary is the world's."""
    settings = run.recipe.teacher
    paths = write_world(WORLDS, settings.world)
    rows = [row for path in paths.values() for row in json.loads(path.read_text(encoding="utf-8"))]
    texts = {message["value"].removeprefix("<image>\n") for row in rows for message in row["conversations"]}
    texts |= {word.strip() for words in GROUPS.values() for word in words}  # a small world may not show them all
    build_processor(settings.model, sorted(texts)).save_pretrained(run.directory / "processor")
    return {"rows": {name: split.rows for name, split in settings.world.splits.items()}}


def train_tower(run: Run) -> dict:
    """The dense objective, on the scenes of a split."""
    settings, seed = run.recipe.teacher, run.recipe.seed
    processor = load_processor(run)
    set_seed(seed)
    model = build_model(settings.model, processor, settings.max_length)
    split = settings.world.splits[settings.tower.split]
    scenes = [scene for scene, _, _ in split_rows(settings.tower.split, split, settings.world.seed)]
    reader = PatchReader(model, processor)
    folder = run.directory / "tower"
    trainer = Trainer(
        model=reader,
        args=phase_arguments(settings.tower, folder / "trainer", seed),
        train_dataset=PatchDataset(scenes, processor),
        callbacks=[MetricsFile(folder / "metrics.jsonl")],
    )
    return finish(trainer, model, folder)


def train_phase(run: Run, phase: PhaseSettings, start: str) -> dict:
    """One phase of questions, from the model that the stage before left in the folder `start`."""
    settings = run.recipe.teacher
    processor = load_processor(run)
    folder = run.directory / "phases" / phase.name
    # Trainer cannot restore these weights itself: on disk their names are the older ones of released LLaVA checkpoints.
    weights = last_checkpoint(folder / "trainer") or run.directory / start / "model"
    model = LlavaForConditionalGeneration.from_pretrained(weights, dtype=torch.float32)
    path = write_world(WORLDS, settings.world)[phase.split]
    samples, _ = load_llava_json(path, path.parent)
    dataset = ConversationDataset(samples, processor, max_length=settings.max_length)
    collator = Collator(processor)
    arguments = phase_arguments(phase, folder / "trainer", run.recipe.seed)
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
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=(
            (lambda encoded: independent_turns(collator(encoded), processor.image_token_id))
            if phase.turns == "independent"
            else collator
        ),
        optimizers=(optimizer, None),
        callbacks=[MetricsFile(folder / "metrics.jsonl")],
    )
    return finish(trainer, model, folder)


def evaluate_teacher(run: Run) -> dict:
    """Generated answers with the weights as they are shipped; the same with grey pictures."""
    settings = run.recipe.teacher
    processor = load_processor(run)
    model = trained_teacher(run).float().eval()
    path = write_world(WORLDS, settings.world)[settings.evaluation_split]
    samples, _ = load_llava_json(path, path.parent)
    evaluations = {}
    for name, transform in (("teacher", None), ("grey", "grey")):
        evaluations[name] = evaluate(
            model, processor, samples, batch_size=settings.evaluation_batch_size, pixel_transform=transform, title=name
        )
        (run.directory / "evaluation").mkdir(exist_ok=True)
        evaluations[name].save(run.directory / "evaluation" / f"{name}.json")
    console.print(families_table(evaluations))
    return {name: evaluation.accuracy for name, evaluation in evaluations.items()}


def export(run: Run) -> dict:
    """The teacher as a Hugging Face folder, whole before it stands at its place."""
    output = run.recipe.teacher.output
    folder = run.directory / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    trained_teacher(run).save_pretrained(folder)
    load_processor(run).save_pretrained(folder)
    (folder / "README.md").write_text(card(run), encoding="utf-8")
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh = output.with_name(f".{output.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(folder, fresh)
    shutil.rmtree(output, ignore_errors=True)
    fresh.rename(output)
    return {"output": str(output)}


# ---- parts of the stages ----


def phase_arguments(settings: OptimizerSettings, output_dir: Path, seed: int) -> TrainingArguments:
    """Returns a stage's optimizer settings in transformers' words."""
    return TrainingArguments(
        output_dir=str(output_dir),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.micro_batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_schedule,
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
        save_total_limit=1,
        remove_unused_columns=False,
        ddp_find_unused_parameters=True,  # the tower's last norm, which LLaVA does not read
        report_to=[],
        seed=seed,
    )


def load_processor(run: Run) -> LlavaProcessor:
    return AutoProcessor.from_pretrained(run.directory / "processor")


def trained_teacher(run: Run) -> LlavaForConditionalGeneration:
    """The model after the last phase, in bfloat16."""
    last = run.recipe.teacher.phases[-1].name
    return LlavaForConditionalGeneration.from_pretrained(
        run.directory / "phases" / last / "model", dtype=torch.bfloat16
    )


def finish(trainer: Trainer, model: LlavaForConditionalGeneration, folder: Path) -> dict:
    """Train to the end, from where an earlier run was stopped if there was one; leave the model in `folder`."""
    checkpoint = last_checkpoint(folder / "trainer")
    outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.is_world_process_zero():
        model.save_pretrained(folder / "model")
        shutil.rmtree(folder / "trainer", ignore_errors=True)
    return {"steps": outcome.global_step, "loss": outcome.training_loss}


def card(run: Run) -> str:
    """The README of the teacher's folder."""
    teacher, grey = (Evaluation.load(run.directory / "evaluation" / f"{name}.json") for name in ("teacher", "grey"))
    rows = [
        f"| {family} | {score.accuracy:.1%} | {score.low:.1%} to {score.high:.1%} | {grey.families[family].accuracy:.1%} |"
        for family, score in teacher.families.items()
    ]
    table = "\n".join(rows)
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# tiny-llava

A `LlavaForConditionalGeneration` in small, trained from scratch on the embedded world of Squint (`data/shapes/world.py`):
pictures of coloured shapes and a written sign, with questions in six families. It is the dense model of the
examples and tests.

    deepspeed train.py --recipe {run.recipe.name}.yaml

Generated answers to {teacher.overall.count} held-out questions, and to the same questions about grey pictures:

| family | accuracy | 95 % interval | grey pictures |
|---|---|---|---|
{table}
| all | {teacher.accuracy:.1%} | {teacher.low:.1%} to {teacher.high:.1%} | {grey.accuracy:.1%} |
"""
