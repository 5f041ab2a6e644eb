"""Builds, trains, saves and loads students. A student is the dense model under a plan, and may be distilled.

A trained student is saved as its LoRA adapters. After full fine-tuning it is saved as its weights. It is loaded from
the dense model, its plan and its folder. The number of processes and DeepSpeed's settings in training do not matter
then.
"""

import gc
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin, set_seed

from checkpoints.build import build_student, dense_config, load_dense, starting_plan
from checkpoints.families import sparse_class
from checkpoints.picture_limits import PictureLimits, limit_config, limit_processor
from checkpoints.processor import load_processor
from data.collator import Collator
from modeling.visual_plan import VisualPlan
from training import stops
from training.distillation.arguments import training_arguments
from training.distillation.lora import add_lora, permuted_adapters
from training.distillation.monitoring.validation import Validation
from training.distillation.narrow_projections import put_narrow_projections
from training.distillation.trainer import DistillationTrainer
from training.distillation.trainer_checkpoints import delete_checkpoints, last_step
from training.files import reading, writing
from training.ranks import from_rank_0
from training.recipe.model import ModelSettings
from training.recipe.student import StudentRecipe
from training.run import device, is_main_process

TRAIN_AGAIN = "delete it and the results of `distil` and the stages after it in stages/, and they are done again"
"""What can be done about damaged weights."""


def load_model(settings: ModelSettings) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Returns the dense model and its processor, in the recipe's dtype and on the CPU. Both have the recipe's limits.

    A sparse checkpoint's weights under the full plan are a dense model.

    Raises:
        UserError: as `checkpoints.build.load_dense`, or as `dense_processor`.
    """
    model, processor = load_dense(
        settings.path, getattr(torch, settings.dtype), settings.trust_remote_code, or_sparse=True
    )
    limit_config(model.config, picture_limits(settings))
    limit_processor(processor, model.config, picture_limits(settings))
    return model, processor


def limited_config(settings: ModelSettings, path: str | None = None) -> PreTrainedConfig:
    """Returns the dense model's config, with the recipe's limits of pictures.

    Args:
        settings: the model.
        path: where the config lies. None means with the model.

    Raises:
        UserError: as `checkpoints.build.dense_config`, or the model has no such limit.
    """
    config = dense_config(path or settings.path, or_sparse=True)
    limit_config(config, picture_limits(settings))
    return config


def dense_processor(settings: ModelSettings) -> ProcessorMixin:
    """Returns the dense model's processor, with the recipe's limits of pictures.

    Raises:
        UserError: there is no processor, the model is not supported, or it has no such limit.
    """
    config = limited_config(settings)
    processor = load_processor(settings.path, settings.trust_remote_code)
    limit_processor(processor, config, picture_limits(settings))
    return processor


def picture_limits(settings: ModelSettings) -> PictureLimits:
    """Returns the limits of pictures and videos that a recipe sets."""
    return PictureLimits(**{field.name: getattr(settings, field.name) for field in fields(PictureLimits)})


def untrained_student(settings: ModelSettings, plan: VisualPlan) -> PreTrainedModel:
    """Returns the dense model's weights under `plan`, on the CPU.

    Raises:
        UserError: the model is not supported, or the plan does not fit it.
    """
    dense, _ = load_model(settings)
    student = build_student(dense, plan)
    student.set_attn_implementation(
        {"text_config": settings.attention}
    )  # the vision tower has no gradients and stays on fused kernels
    return student


def dense_student(settings: ModelSettings) -> PreTrainedModel:
    """Returns the dense model as a sparse class under the dense plan, so that it can run any plan.

    The config of a sparse checkpoint's weights keeps the checkpoint's plan.
    """
    num_layers = limited_config(settings).text_config.num_hidden_layers
    student, start = untrained_student(settings, VisualPlan.dense(num_layers)), starting_plan(settings.path)
    student.config.visual_plan = start and start.to_dict()
    return student.to(device())


def trained_student(recipe: StudentRecipe, plan: VisualPlan, folder: Path) -> PreTrainedModel:
    """Returns the student that `train_student` saved in `folder`, on the CPU, with its adapters merged."""
    weights = folder / "weights"
    if recipe.lora is None:
        cls = sparse_class(limited_config(recipe.model))
        with reading(weights, TRAIN_AGAIN):
            return cls.from_pretrained(weights, dtype=getattr(torch, recipe.model.dtype))
    model = add_lora(untrained_student(recipe.model, plan), recipe.lora)
    with reading(weights, TRAIN_AGAIN):
        outcome = set_peft_model_state_dict(model, load_file(weights / "adapter_model.safetensors"))
    assert not outcome.unexpected_keys, outcome.unexpected_keys[:3]
    return model.merge_and_unload()


def train_student(
    recipe: StudentRecipe,
    plan: VisualPlan,
    dataset: Dataset,
    collator: Collator,
    folder: Path,
    adapters: Mapping[str, torch.Tensor] | None = None,
    validation: Validation | None = None,
    pause_at: int | None = None,
) -> None:
    """Distils the student under `plan`, unless `folder` has its weights already. Every process calls this.

    It writes weights/ and trainer/metrics.jsonl in `folder`. weights/ is complete if it is there. A training that was
    stopped, or has paused, goes on from its last checkpoint.

    Args:
        recipe: the recipe, with the student's own seed and training.
        plan: the student's plan.
        dataset: the training data, perhaps with the teacher's answers.
        collator: makes batches of its samples.
        folder: folder of the student.
        adapters: adapters of the dense model that the student begins with, not permuted; None for fresh adapters.
        validation: held-out samples that are looked at meanwhile, if any.
        pause_at: the step after which the training pauses: it looks at the held-out samples, and leaves a checkpoint
            but no weights. None trains to the end.

    Raises:
        UserError: as `DistillationTrainer`.
    """
    if is_trained(folder) or (pause_at is not None and last_step(folder / "trainer") >= pause_at):
        return
    set_seed(recipe.seed)
    # The models are loaded before the training arguments are made. With ZeRO-3, these make from_pretrained divide
    # every model that it loads.
    student, teacher = untrained_student(recipe.model, plan), None
    put_narrow_projections(student)
    if recipe.lora is not None:
        student = add_lora(student, recipe.lora)
        if adapters is not None:
            student_adapters = permuted_adapters(adapters, student.get_base_model().model.language_model, plan)
            outcome = set_peft_model_state_dict(student, student_adapters)
            assert not outcome.unexpected_keys, outcome.unexpected_keys[:3]
    else:
        student.vision_tower.requires_grad_(False)
    if recipe.distillation.needs_teacher and (recipe.lora is None or recipe.model.teacher is not None):
        teacher = untrained_student(recipe.model.of_teacher, VisualPlan.dense(len(plan)))
    trainer = DistillationTrainer(
        model=student,
        args=training_arguments(
            recipe.training, folder / "trainer", recipe.seed, f"{recipe.name}/{folder.name}", recipe
        ),
        train_dataset=dataset,
        data_collator=collator,
        validation=validation,
        distillation=recipe.distillation,
        teacher=teacher,
        pause_at=pause_at,
    )
    train_and_save(trainer, folder)


def is_trained(folder: Path) -> bool:
    """Returns whether weights/ is in a student's folder. Every process calls this.

    Checkpoints that a killed process has left beside it are deleted.
    """
    found = from_rank_0((folder / "weights").exists())  # on a shared disk, ranks may see different things
    if found and is_main_process():
        delete_checkpoints(folder / "trainer")
    return found


def train_and_save(trainer: DistillationTrainer, folder: Path) -> None:
    """Trains to the end, and saves what was trained in `folder`/weights. Every process calls this.

    The trainer's checkpoints are deleted then. weights/ is complete if it is there. A trainer that pauses leaves its
    checkpoint instead. Stopped is raised if a process was told to stop meanwhile.
    """
    with stops.deferred():
        trainer.train()
        if trainer.pause_at is None:
            partial = folder / "weights.partial"
            with writing(folder / "weights"):
                trainer.save_model(str(partial))
            trainer.accelerator.wait_for_everyone()
            if is_main_process():
                partial.rename(folder / "weights")
                delete_checkpoints(folder / "trainer")
            trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()
    del trainer
    gc.collect()  # DeepSpeed's engine and hooks refer to each other, and the next model needs the memory
