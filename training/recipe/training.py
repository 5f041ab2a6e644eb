"""The `training` section of a recipe: how long, how fast, on what."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from training.schema import Strict


class TrainingSettings(Strict):
    """Optimisation: how long, how fast, on what."""

    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; either this or num_epochs."""
    num_epochs: float | None = Field(default=None, gt=0)
    micro_batch_size: int = Field(ge=1)
    """Samples per process and forward."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    learning_rate: float = Field(gt=0)
    lr_schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Literal["bfloat16", "float32"]
    gradient_checkpointing: bool = False
    deepspeed: str | None
    """A DeepSpeed config (recipes/deepspeed/*.json); null: none."""
    logging_steps: int = Field(default=10, ge=1)
    save_steps: int = Field(default=500, ge=1)
    """A killed run continues from the last multiple of this."""
    num_workers: int = Field(default=0, ge=0)
    """Processes per rank that load and encode samples."""
    report_to: tuple[str, ...] = ("tensorboard",)
    """Trackers known to transformers (wandb, mlflow, ...); metrics.jsonl is always written."""

    @model_validator(mode="after")
    def _one_length(self):
        if (self.max_steps is None) == (self.num_epochs is None):
            raise ValueError("give either max_steps or num_epochs")
        return self

    @model_validator(mode="after")
    def _deepspeed_exists(self):
        if self.deepspeed is not None and not Path(self.deepspeed).is_file():
            raise ValueError(f"deepspeed: no file {self.deepspeed!r}")
        return self
