"""A recipe's `training` section as transformers' `TrainingArguments`."""

from pathlib import Path

import torch

from training.compiled_ops import compile_no_inference_op
from training.distillation.monitoring.trackers import PROJECT, RecipeArguments
from training.recipe.student import StudentRecipe
from training.recipe.training import TrainingSettings


def training_arguments(
    settings: TrainingSettings, output_dir: Path, seed: int, name: str, recipe: StudentRecipe | None = None
) -> RecipeArguments:
    """Returns the settings as transformers' `TrainingArguments`.

    Args:
        output_dir: folder of checkpoints.
        seed: seed of the order of samples.
        name: name of the training in its progress and in trackers.
        recipe: what trackers show besides; None for nothing.
    """
    if settings.deepspeed is not None:
        compile_no_inference_op()
    checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return RecipeArguments(
        output_dir=str(output_dir),
        run_name=name,
        project=PROJECT,  # of Trackio
        recipe={} if recipe is None else recipe.model_dump(mode="json"),
        max_steps=settings.max_steps or -1,
        num_train_epochs=settings.num_epochs or 1,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        average_tokens_across_devices=True,
        train_sampling_strategy="group_by_length" if settings.group_by_modality_length else "random",
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_schedule,
        warmup_steps=settings.warmup_ratio,  # transformers takes a number below 1 as a share of all steps
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bfloat16",
        **(checkpointing if settings.gradient_checkpointing else {}),
        deepspeed=settings.deepspeed,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=settings.save_steps,
        dataloader_num_workers=settings.num_workers,
        remove_unused_columns=False,
        report_to=list(settings.report_to),
        disable_tqdm=True,  # TrainingProgress shows the same, without a line for each log
        seed=seed,
    )
