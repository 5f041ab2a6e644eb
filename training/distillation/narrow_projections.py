"""Projections that take slices of their own weight, for a model that is trained.

A sparse decoder takes slices of a plain `nn.Linear` by itself, and calls every other module for its whole product
(`modeling.narrow_linear.narrow`). Under ZeRO-3 a weight is complete only in the forward of its own module. There the
slices must be taken in that forward, or the student would compute what its plan leaves out.
"""

import torch
from torch import nn

from modeling.narrow_linear import Selection, narrow_linear


class NarrowLinear(nn.Linear):
    """A linear map that can give a part of its outputs, or take a part of its inputs."""

    takes_slices = True

    def forward(self, x: torch.Tensor, rows: Selection = None, columns: Selection = None) -> torch.Tensor:
        """As `modeling.narrow_linear.narrow`, of this projection."""
        return narrow_linear(x, self.weight, self.bias, rows, columns)


def narrow_twin(linear: nn.Linear) -> NarrowLinear:
    """Returns a projection that takes slices. It has the same parameters."""
    twin = NarrowLinear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
    twin.weight, twin.bias = linear.weight, linear.bias
    return twin.train(linear.training)


def decoder_projections(model: nn.Module) -> list[str]:
    """Returns the names of the projections in a sparse model's text decoder."""
    layers = model.get_submodule("model.language_model.layers")
    return [
        f"model.language_model.layers.{index}.{name}"
        for index, layer in enumerate(layers)
        for name in layer.projections()
    ]


def put_narrow_projections(model: nn.Module) -> None:
    """Puts projections that take slices in place of those of a sparse model's text decoder.

    Names and shapes of parameters stay. A model that is saved and loaded again has plain projections.
    """
    for name in decoder_projections(model):
        model.set_submodule(name, narrow_twin(model.get_submodule(name)))
