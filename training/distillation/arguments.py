"""A recipe's `training` section as transformers' `TrainingArguments`."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from modeling.user_error import UserError
from training.recipe.training import TrainingSettings


def training_arguments(settings: TrainingSettings, output_dir: Path, seed: int, name: str) -> TrainingArguments:
    """Returns the settings as transformers' `TrainingArguments`.

    Args:
        output_dir: folder of checkpoints.
        seed: seed of the order of samples.
        name: name of the training in front of its progress bar and in trackers.
    """
    checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return TrainingArguments(
        output_dir=str(output_dir),
        run_name=name,
        max_steps=settings.max_steps or -1,
        num_train_epochs=settings.num_epochs or 1,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        average_tokens_across_devices=True,
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
        disable_tqdm=True,  # ProgressBar shows the same, without a line for each log
        seed=seed,
    )


def refuse_missing_trackers(names: Sequence[str]) -> None:
    """Raises UserError if a tracker that is asked for is not installed, or is not one that transformers knows."""
    available = get_available_reporting_integrations()
    for name in names:
        if name not in available:
            raise UserError(
                f"training.report_to: got {name!r}, which is not installed or not known; installed: "
                f"{', '.join(available) or 'none'}"
            )
