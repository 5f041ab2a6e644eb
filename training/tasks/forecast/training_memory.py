"""Estimates the memory that one process needs in training: weights, gradients, optimizer states and activations."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from training.distillation.losses import CHUNK_VALUES
from training.recipe.training import TrainingSettings
from training.tasks.forecast.sizes import Sizes

ACTIVATION_BYTES = 34
"""Bytes per token, layer and hidden value that a layer holds for its backward pass in 16 bits, if attention maps are
computed again (arXiv 2205.05198, section 4)."""
LIVE_PARAMETERS = 10**9
"""Parameters that ZeRO-3 gathers at a time at most (`stage3_max_live_parameters`, whose default this is)."""


@dataclass(frozen=True)
class Zero:
    """How DeepSpeed shares out a training (arXiv 1910.02054)."""

    stage: int
    """0: nothing, as without DeepSpeed. 1: optimizer states. 2: gradients too. 3: weights too."""
    casts_weights: bool
    """Whether weights are cast to 16 bits, and fp32 copies of the trained ones are kept with the optimizer states."""

    @classmethod
    def of(cls, settings: TrainingSettings) -> "Zero":
        """Returns what the recipe's DeepSpeed config asks for."""
        if settings.deepspeed is None:
            return cls(stage=0, casts_weights=False)
        config = json.loads(Path(settings.deepspeed).read_text(encoding="utf-8"))
        stage = config.get("zero_optimization", {}).get("stage", 0)
        return cls(stage=stage, casts_weights=settings.precision == "bfloat16")


def state_bytes(sizes: Sizes, zero: Zero, trained: int, *, lora: bool, second_model: bool, processes: int) -> float:
    """Returns the bytes per process of weights, gradients and optimizer states.

    Adam keeps two fp32 moments of each trained weight. In 16 bits, DeepSpeed adds an fp32 copy. Without DeepSpeed, peft
    has adapters in fp32.

    Args:
        trained: number of trained weights.
        lora: whether these are adapters, and not among the model's own weights.
        second_model: whether the teacher is a second model. Its weights are not divided.
    """
    width = 2 if zero.casts_weights else sizes.value_bytes
    trained_width = 2 if zero.casts_weights else 4
    weights = sizes.parameters * width + (trained * trained_width if lora else 0)
    gathered = 0.0
    if zero.stage >= 3:
        weights /= processes
        gathered = min(LIVE_PARAMETERS, sizes.parameters) * width * (1 - 1 / processes)
    gradients = trained * trained_width / (processes if zero.stage >= 2 else 1)
    optimizer = trained * (12 if zero.casts_weights else 8) / (processes if zero.stage >= 1 else 1)
    teacher = sizes.weights if second_model else 0
    return weights + gathered + teacher + gradients + optimizer


def activation_bytes(settings: TrainingSettings, sizes: Sizes) -> float:
    """Returns the bytes of activations for a batch of the longest samples in the dense decoder.

    A sparse student needs less.
    """
    decoder, width = sizes.decoder, training_width(settings)
    values = settings.micro_batch_size * sizes.longest * decoder.hidden_size
    # With checkpointing, one layer at a time holds everything, and the others hold only their inputs.
    full_layers, inputs_held = (1, decoder.num_layers) if settings.gradient_checkpointing else (decoder.num_layers, 0)
    return values * (full_layers * ACTIVATION_BYTES * width / 2 + inputs_held * width)


def logits_bytes(settings: TrainingSettings, sizes: Sizes) -> float:
    """Returns the bytes of logits at supervised tokens.

    They are the student's, and some seven fp32 tensors of the chunk whose losses are being computed
    (training/distillation/losses.py).
    """
    values = settings.micro_batch_size * min(sizes.text_tokens, sizes.longest) * sizes.vocabulary
    return values * training_width(settings) + 7 * 4 * min(values, CHUNK_VALUES)


def training_width(settings: TrainingSettings) -> int:
    """Returns the bytes of one value in the forward pass."""
    return getattr(torch, settings.precision).itemsize
