"""LoRA adapters (arXiv 2106.09685: y = W x + scaling * B A x) on projections of which only slices are used.

A sparse decoder asks its projections for a part of their outputs, or gives a part of their inputs
(`modeling.narrow_linear.narrow`). An adapter that follows the same slices costs as little as its projection, so A and B
are narrow projections too.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from checkpoints.build import permuted, served_first
from modeling.narrow_linear import Selection, narrow
from modeling.visual_plan import VisualPlan
from training.distillation.narrow_projections import decoder_projections, narrow_twin
from training.recipe.lora import LoraSettings


class NarrowLoraLinear(LoraLinear):
    """A projection with LoRA. Its forward uses the same slices of the projection and of the adapters."""

    takes_slices = True
    off: bool = False
    """Whether the adapters are left out (see `adapters_off`)."""

    def update_layer(self, adapter_name: str, *args, **kwargs) -> None:
        """As in peft, with A and B as narrow projections."""
        super().update_layer(adapter_name, *args, **kwargs)
        for adapters in (self.lora_A, self.lora_B):
            adapters[adapter_name] = narrow_twin(adapters[adapter_name])

    def forward(self, x: torch.Tensor, rows: Selection = None, columns: Selection = None) -> torch.Tensor:
        """As `narrow` of the projection, plus the output of the adapters. Its dtype is the projection's, as in peft."""
        result = narrow(self.base_layer, x, rows, columns)
        if self.off or self.disable_adapters or self.merged:
            return result
        for name in self.active_adapters:
            if not torch.is_autocast_enabled(x.device.type):  # autocast would cast it back
                x = self._cast_input_dtype(x, self.lora_A[name].weight.dtype)
            low = self.lora_A[name](self.lora_dropout[name](x), columns=columns)
            result = result + self.lora_B[name](low * self.scaling[name], rows=rows).to(result.dtype)
        return result


def add_lora(model: nn.Module, settings: LoraSettings) -> PeftModel:
    """Freezes `model`, and puts trainable adapters on every projection of its text decoder."""
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=decoder_projections(model),
    )
    # peft has no public function to register an adapter class for another layer class.
    config._register_custom_module({nn.Linear: NarrowLoraLinear})
    return get_peft_model(model, config)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside this context the model computes with its base weights alone.

    Unlike peft's `disable_adapter`, it does not change requires_grad. DeepSpeed sets its hooks once, on the parameters
    that require gradients.
    """
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
    """Returns adapters of the dense model in the order of units and neurons that the student under `plan` has.

    In the student, units and neurons that serve visual tokens come first (`checkpoints.build.permute_for_plan`). Rows
    of B are permuted where outputs were reordered, columns of A where inputs were.

    Args:
        adapters: what `peft.get_peft_model_state_dict` gives. Names contain `.layers.INDEX.` for the decoder's layers.
        decoder: the student's text decoder, which knows the sizes and projections of its layers.
        plan: the student's plan. Its `heads` and `ffn` may be lists of units and neurons of the dense model.
    """
    totals = {"heads": decoder.config.num_key_value_heads, "ffn": decoder.config.intermediate_size}
    permuted_values = {}
    for name, value in adapters.items():
        index, projection_name, matrix = re.search(r"\.layers\.(\d+)\.(.*?)\.lora_([AB])\.", name).groups()
        projection = decoder.layers[int(index)].projections()[projection_name]
        served = getattr(plan.layers[int(index)], projection.ordered_by)
        if isinstance(served, tuple) and (matrix == "B") == (projection.side == "rows"):
            order = served_first(served, totals[projection.ordered_by])
            value = permuted(value, projection.parts, order, dim=0 if matrix == "B" else 1)
        permuted_values[name] = value.contiguous()
    return permuted_values
