"""The `training` section of a recipe."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from modeling.user_error import UserError
from training.recipe.deepspeed import check_deepspeed
from training.schema import FROM_ANYWHERE, MayChange, Precision, Strict


class TrainingSettings(Strict):
    """How students are optimised, with AdamW. Give either `max_steps` or `num_epochs`."""

    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps in which a student is trained. null: `num_epochs` says how long."""
    num_epochs: float | None = Field(default=None, gt=0)
    """Passes over the training data in which a student is trained. null: `max_steps` says how long."""
    micro_batch_size: Annotated[int, MayChange.AT_EQUAL_GLOBAL_BATCH] = Field(ge=1)
    """Samples per process in one forward pass."""
    gradient_accumulation_steps: Annotated[int, MayChange.AT_EQUAL_GLOBAL_BATCH] = Field(default=1, ge=1)
    """Forward passes per optimizer step. The global batch is this x `micro_batch_size` x the number of processes."""
    group_by_modality_length: bool = False
    """Make batches of samples of similar length, all with pictures or all without. They hold less padding, and ranks
    wait less for each other. false: batches of random samples."""
    learning_rate: float = Field(gt=0)
    """The highest learning rate, reached at the end of the warm-up."""
    lr_schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """How the learning rate goes on after the warm-up: it falls to 0 (cosine, linear) or stays
    (constant_with_warmup)."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients with a larger L2 norm than this are scaled down to it. While gates are learned, those of gates and
    multipliers are scaled apart from those of the adapters."""
    precision: Precision
    """Data type of the forward and backward pass. bfloat16 is mixed precision (autocast). auto: bfloat16 where the GPU,
    or without one the CPU, has instructions for it, else float32. A run keeps what it was begun with."""
    gradient_checkpointing: Annotated[bool, MayChange.ALWAYS] = False
    """Compute activations again in the backward pass rather than hold them: less memory, more time."""
    deepspeed: Annotated[str | None, FROM_ANYWHERE, MayChange.WITH_EQUAL_CONTENT]
    """JSON file of a DeepSpeed config, such as one of recipes/deepspeed/. null: training without DeepSpeed."""
    logging_steps: Annotated[int, MayChange.ALWAYS] = Field(default=10, ge=1)
    """Optimizer steps from one row of metrics.jsonl to the next."""
    save_steps: Annotated[int, MayChange.ALWAYS] = Field(default=500, ge=1)
    """Optimizer steps from one checkpoint to the next. A run that was killed continues from its last checkpoint."""
    num_workers: Annotated[int, MayChange.ALWAYS] = Field(default=0, ge=0)
    """Extra processes per rank that load and encode samples. 0: the training process does it itself."""
    report_to: Annotated[tuple[str, ...], MayChange.ALWAYS] = ("tensorboard",)
    """Trackers that metrics are sent to, by the names that transformers knows (tensorboard, wandb, mlflow, ...).
    metrics.jsonl is written in any case."""

    @model_validator(mode="after")
    def _one_length(self):
        if (self.max_steps is None) == (self.num_epochs is None):
            raise ValueError("give either max_steps or num_epochs")
        return self

    @model_validator(mode="after")
    def _is_a_deepspeed_config(self):
        if self.deepspeed is not None:
            try:
                check_deepspeed(self.deepspeed)
            except UserError as error:
                raise ValueError(f"deepspeed: {error}") from None
        return self
