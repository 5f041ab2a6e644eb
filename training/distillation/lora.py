"""LoRA on projections that are used in slices.

A sparse decoder calls its projections (`modeling.narrow_linear.NarrowLinear`) with `rows` (which outputs are wanted)
and `columns` (which inputs `x` holds); an adapter must follow the same slices, so it is built of narrow projections
itself. Every weight is sliced inside its own module's forward: under ZeRO-3 it is whole nowhere else.

LoRA: arXiv 2106.09685; y = W x + scaling * B A x.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from checkpoints.build import permuted, served_first
from modeling.narrow_linear import NarrowLinear
from modeling.visual_plan import VisualPlan
from training.recipe.lora import LoraSettings


class NarrowLoraLinear(LoraLinear):
    """The LoRA twin of `NarrowLinear`: same forward signature, same slices."""

    off: bool = False
    """The base projection alone; see `adapters_off`."""

    def update_layer(self, adapter_name: str, *args, **kwargs) -> None:
        super().update_layer(adapter_name, *args, **kwargs)
        for adapters in (self.lora_A, self.lora_B):
            adapters[adapter_name] = _narrow(adapters[adapter_name])

    def forward(
        self,
        x: torch.Tensor,
        rows: int | torch.Tensor | None = None,
        columns: int | torch.Tensor | None = None,
    ) -> torch.Tensor:
        result = self.base_layer(x, rows=rows, columns=columns)
        if self.off or self.disable_adapters or self.merged:
            return result
        for name in self.active_adapters:
            if not torch.is_autocast_enabled(x.device.type):  # which would cast it back
                x = self._cast_input_dtype(x, self.lora_A[name].weight.dtype)
            low = self.lora_A[name](self.lora_dropout[name](x), columns=columns)
            result = result + self.lora_B[name](low * self.scaling[name], rows=rows)
        return result


def _narrow(linear: nn.Linear) -> NarrowLinear:
    """The same weight in a projection that can be sliced."""
    narrow = NarrowLinear(linear.in_features, linear.out_features, bias=False, device="meta")
    narrow.weight = linear.weight
    return narrow


def add_lora(model: nn.Module, settings: LoraSettings) -> PeftModel:
    """Freeze `model` and put trainable adapters on every `NarrowLinear` in it, that is on its text decoder."""
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=[name for name, module in model.named_modules() if isinstance(module, NarrowLinear)],
    )
    # peft has no public way to say which adapter class belongs to a layer class of ours.
    config._register_custom_module({NarrowLinear: NarrowLoraLinear})
    return get_peft_model(model, config)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model is its base weights. Unlike peft's `disable_adapter`, no requires_grad is touched: DeepSpeed
    has hung its hooks on the parameters that require gradients, once."""
    layers = [module for module in model.modules() if isinstance(module, NarrowLoraLinear)]
    for layer in layers:
        layer.off = True
    try:
        yield
    finally:
        for layer in layers:
            layer.off = False


def permuted_adapters(
    adapters: Mapping[str, torch.Tensor], decoder: nn.Module, plan: VisualPlan
) -> dict[str, torch.Tensor]:
    """Adapters of the dense model as those of the student under `plan`, whose served units and neurons come first
    (`checkpoints.build.permute_for_plan`): rows of B where outputs were reordered, columns of A where inputs were.

    Args:
        adapters: as `peft.get_peft_model_state_dict` gives them, of a model whose decoder layers are `...layers.INDEX...`.
        decoder: the student's, for the sizes and projections of its layers.
    """
    totals = {"heads": decoder.config.num_key_value_heads, "ffn": decoder.config.intermediate_size}
    moved = {}
    for name, value in adapters.items():
        index, projection_name, matrix = re.search(r"\.layers\.(\d+)\.(.*?)\.lora_([AB])\.", name).groups()
        projection = decoder.layers[int(index)].projections()[projection_name]
        served = getattr(plan.layers[int(index)], projection.ordered_by)
        if isinstance(served, tuple) and (matrix == "B") == (projection.side == "rows"):
            order = served_first(served, totals[projection.ordered_by])
            value = permuted(value, projection.parts, order, dim=0 if matrix == "B" else 1)
        moved[name] = value.contiguous()
    return moved
