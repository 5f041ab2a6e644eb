"""Estimates the memory that one process needs in training: weights, gradients, optimizer states and activations."""

from torch import nn
from transformers import PreTrainedConfig

from training.recipe.student import StudentRecipe
from training.recipe.training import TrainingSettings

OPTIMIZER_BYTES = 12
"""Bytes per trained weight for Adam in mixed precision: an fp32 copy of the weight and two moments."""
ACTIVATION_BYTES = 34
"""Bytes per token, layer and hidden value that a layer holds for its backward pass in 16 bits, if attention maps are
computed again (arXiv 2205.05198, section 4)."""


def state_bytes(recipe: StudentRecipe, student: nn.Module, num_processes: int, *, weights_divided: bool) -> float:
    """Returns the bytes per process of weights, gradients and optimizer states.

    Gradients and optimizer states are divided among the processes, as by ZeRO-2 and ZeRO-3.

    Args:
        student: the student that is trained. It may be on the meta device.
        num_processes: number of processes.
        weights_divided: whether the student's weights are divided too, as by ZeRO-3. The weights of a second model, the
            teacher, are not divided.
    """
    total, trained = num_parameters(student)
    width = _bytes_per_value(recipe.training)
    second_model = recipe.lora is None and recipe.distillation.needs_teacher
    weights = total * width / (num_processes if weights_divided else 1)
    teacher = total * width if second_model else 0
    return weights + teacher + trained * (width + OPTIMIZER_BYTES) / num_processes


def activation_bytes(settings: TrainingSettings, config: PreTrainedConfig, max_length: int) -> float:
    """Returns the bytes of activations for a batch of the longest samples in the dense decoder.

    A sparse student needs less.
    """
    text, width = config.text_config, _bytes_per_value(settings)
    values = settings.micro_batch_size * max_length * text.hidden_size
    # With checkpointing, one layer at a time holds everything, and the others hold only their inputs.
    full_layers, inputs_held = (
        (1, text.num_hidden_layers) if settings.gradient_checkpointing else (text.num_hidden_layers, 0)
    )
    return values * (full_layers * ACTIVATION_BYTES * width / 2 + inputs_held * width)


def num_parameters(model: nn.Module) -> tuple[int, int]:
    """Returns the number of all parameters, and of those that are trained."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(count for count, _ in counts), sum(count for count, trained in counts if trained)


def _bytes_per_value(settings: TrainingSettings) -> int:
    return 2 if settings.precision == "bfloat16" else 4
