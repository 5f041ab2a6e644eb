"""The sizes of a recipe's model and samples, from which memory and time follow."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig

from checkpoints.families import reference_images, sparse_class
from modeling.visual_flops import DecoderShape
from modeling.visual_layout import num_tokens
from training.distillation.lora import add_lora
from training.gates.learning import DEFAULT_LORA
from training.recipe.lora import LoraSettings
from training.recipe.student import StudentRecipe
from training.tasks.forecast.assumptions import Assumptions


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model and of the samples that it meets."""

    parameters: int
    """Parameters of the dense model."""
    trained: int
    """Parameters that are trained in distillation."""
    gate_adapters: int
    """Parameters of the adapters that are trained together with gates."""
    value_bytes: int
    """Bytes of one value in the recipe's dtype, which weights have outside training."""
    decoder: DecoderShape
    vocabulary: int
    visual_tokens: int
    """Visual tokens of a sample: those of the picture for which costs are counted."""
    text_tokens: int
    """Text tokens of a sample, in the mean."""
    longest: int
    """Tokens of the longest sample."""

    @property
    def weights(self) -> int:
        """Bytes of the dense model's weights."""
        return self.parameters * self.value_bytes


def sizes_of(recipe: StudentRecipe, config: PreTrainedConfig, student: nn.Module, assumed: Assumptions) -> Sizes:
    """Returns the sizes of a recipe.

    Args:
        student: what `build_on_meta` returns for the recipe.
    """
    total, trained = num_parameters(student)
    adapters = trained
    if recipe.lora is None:
        adapters = num_parameters(build_on_meta(DEFAULT_LORA, config))[1]
    return Sizes(
        parameters=total if recipe.lora is None else total - trained,
        trained=trained,
        gate_adapters=adapters,
        value_bytes=getattr(torch, recipe.model.dtype).itemsize,
        decoder=DecoderShape.from_config(config.text_config),
        vocabulary=config.text_config.vocab_size,
        visual_tokens=sum(map(num_tokens, reference_images(config))),
        text_tokens=assumed.text_tokens,
        longest=recipe.data.max_length,
    )


def build_on_meta(lora: LoraSettings | None, config: PreTrainedConfig) -> nn.Module:
    """Returns the student that would be trained, on the meta device, so that its tensors need no memory."""
    values = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    with torch.device("meta"):
        cls = sparse_class(config)
        student = cls(cls.config_class.from_dict(values))
    if lora is not None:
        return add_lora(student, lora)
    student.vision_tower.requires_grad_(False)
    return student


def num_parameters(model: nn.Module) -> tuple[int, int]:
    """Returns the number of all parameters, and of those that are trained."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(count for count, _ in counts), sum(count for count, trained in counts if trained)
