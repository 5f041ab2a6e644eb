"""Students: the dense model's weights under a plan, distilled, and kept on disk as what training changed.

A trained student is stored as its LoRA adapter (after full fine-tuning, as its weights) and put together again from the
dense model, its plan and that folder, whatever the number of processes or the ZeRO stage that trained it.
"""

import gc
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import PreTrainedModel, ProcessorMixin, set_seed

from checkpoints.build import build_student, dense_config, load_dense
from checkpoints.families import sparse_class
from checkpoints.processor import load_processor
from data.collator import Collator
from modeling.visual_plan import VisualPlan
from training.distillation.arguments import training_arguments
from training.distillation.lora import add_lora, permuted_adapters
from training.distillation.trainer import DistillationTrainer
from training.recipe.model import ModelSettings
from training.recipe.student import StudentRecipe
from training.run import device, is_main_process


def load_model(settings: ModelSettings) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The dense model and its processor, in the recipe's dtype, on the CPU. Raises UserError, as `load_dense`."""
    return load_dense(settings.path, getattr(torch, settings.dtype), settings.trust_remote_code)


def dense_processor(settings: ModelSettings) -> ProcessorMixin:
    """The dense model's processor alone. Raises UserError where there is none, or no model that is supported."""
    dense_config(settings.path)
    return load_processor(settings.path, settings.trust_remote_code)


def untrained_student(settings: ModelSettings, plan: VisualPlan) -> PreTrainedModel:
    """The dense model under `plan`."""
    dense, _ = load_model(settings)
    student = build_student(dense, plan)
    student.set_attn_implementation({"text_config": settings.attention})  # the tower, without gradients, stays fused
    return student


def dense_student(settings: ModelSettings) -> PreTrainedModel:
    """The dense model in the class that can run any plan."""
    num_layers = dense_config(settings.path).text_config.num_hidden_layers
    return untrained_student(settings, VisualPlan.dense(num_layers)).to(device())


def trained_student(recipe: StudentRecipe, plan: VisualPlan, folder: Path) -> PreTrainedModel:
    """The student that `train_student` left in `folder`, adapters merged."""
    weights = folder / "weights"
    if recipe.lora is None:
        cls = sparse_class(dense_config(recipe.model.path))
        return cls.from_pretrained(weights, dtype=getattr(torch, recipe.model.dtype))
    model = add_lora(untrained_student(recipe.model, plan), recipe.lora)
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
) -> None:
    """Distil the student under `plan`; every process calls this. What is in `folder` already is not done again.

    Args:
        adapters: those to begin with, of the dense model (not permuted); None: fresh ones.

    Leaves in `folder`: weights/ (whole or absent) and trainer/ with metrics.jsonl.
    """
    if (folder / "weights").exists():
        return
    set_seed(recipe.seed)
    # Loaded before the training arguments exist: under ZeRO-3 these make from_pretrained split what it loads.
    student, teacher = untrained_student(recipe.model, plan), None
    if recipe.lora is not None:
        student = add_lora(student, recipe.lora)
        if adapters is not None:
            own = permuted_adapters(adapters, student.get_base_model().model.language_model, plan)
            outcome = set_peft_model_state_dict(student, own)
            assert not outcome.unexpected_keys, outcome.unexpected_keys[:3]
    else:
        student.vision_tower.requires_grad_(False)
        if recipe.distillation.needs_teacher:
            teacher = untrained_student(recipe.model, VisualPlan.dense(len(plan)))
    trainer = DistillationTrainer(
        model=student,
        args=training_arguments(recipe.training, folder / "trainer", recipe.seed, folder.name),
        train_dataset=dataset,
        data_collator=collator,
        distillation=recipe.distillation,
        teacher=teacher,
    )
    train_and_keep(trainer, folder)


def train_and_keep(trainer: DistillationTrainer, folder: Path) -> None:
    """Trains to the end and leaves what was trained in `folder`/weights, whole or absent; every process calls this."""
    trainer.train()
    partial = folder / "weights.partial"
    trainer.save_model(str(partial))
    trainer.accelerator.wait_for_everyone()
    if is_main_process():
        partial.rename(folder / "weights")
        for checkpoint in (folder / "trainer").glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()
    del trainer
    gc.collect()  # engine and hooks hold each other; the next model needs the room
