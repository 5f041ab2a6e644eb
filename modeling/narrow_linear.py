"""A projection of which a part may be used.

A plan leaves outputs and inputs of a projection out. In a plain `torch.nn.Linear` those are absent from the matrix
product, not masked in it. Tools put other modules in its place: adapters, quantised weights, weights that are loaded
when they are needed. Such a module is called as it is, on all its inputs and for all its outputs.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from .host_memory import to_device
from .user_error import UserError

Selection: TypeAlias = int | slice | torch.Tensor | None
"""Chosen outputs or inputs of a projection: the first n, a slice, or a long tensor of indices. None means all."""


def narrow(projection: Any, x: torch.Tensor, rows: Selection = None, columns: Selection = None) -> torch.Tensor:
    """Returns the projection [..., out] of x [..., in].

    A plain `nn.Linear` costs what its part of the weight costs, and so does a module whose class has a true
    `takes_slices` and whose forward takes `rows` and `columns` as they are taken here. Every other module costs its
    whole product, and with `columns` also a copy of x that is as wide as all its inputs. The result is right if the
    module treats each row of x by itself and gives nothing more for an input that is 0.

    Args:
        projection: a module that maps `in_features` inputs.
        rows: which outputs are wanted. `out` is then their number.
        columns: which inputs x holds. The others are 0. `in` is then their number.
    """
    if rows is None and columns is None:
        return projection(x)
    if _is_plain(projection):
        return narrow_linear(x, projection.weight, projection.bias, rows, columns)
    if _takes_slices(projection):
        return projection(x, rows=rows, columns=columns)
    return _chosen(projection(x if columns is None else _widened(x, columns, projection.in_features)), rows)


def narrow_parts(projection: nn.Module, x: torch.Tensor, parts: Sequence[Selection]) -> list[torch.Tensor]:
    """Returns several parts of a projection's outputs, each as by `narrow`. A whole product is computed once."""
    if _is_plain(projection) or _takes_slices(projection):
        return [narrow(projection, x, rows) for rows in parts]
    whole = projection(x)
    return [_chosen(whole, rows) for rows in parts]


def narrow_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, rows: Selection, columns: Selection
) -> torch.Tensor:
    """Returns x [..., in] times a part of weight [all outputs, all inputs], plus that of bias [all outputs]."""
    if rows is not None:
        rows = _as_index(rows, weight.device)
        weight = weight[rows]
        bias = None if bias is None else bias[rows]
    if columns is not None:
        weight = weight[:, _as_index(columns, weight.device)]
    return F.linear(x, weight, bias)


def refuse_adapters_by_place(model: nn.Module) -> None:
    """Raises UserError if peft put adapters into the model that treat a row by its place in the prompt.

    Projections of this model get text rows and visual rows apart, so the adapters would count other rows.
    """
    for name, config in model.__dict__.get("peft_config", {}).items():
        is_x_lora = config.peft_type == "XLORA"
        if is_x_lora or getattr(config, "alora_invocation_tokens", None) is not None:
            kind = "X-LoRA" if is_x_lora else "aLoRA (alora_invocation_tokens)"
            raise UserError(
                f"adapter {name!r}: got {kind}, which counts the rows of a prompt; allowed: adapters that treat every "
                "row alike, such as LoRA"
            )


def _is_plain(projection: Any) -> bool:
    """Returns whether the module computes `F.linear` of a weight that is there, and nobody waits for it to be called.

    DeepSpeed and PyTorch's own hooks, and accelerate by a forward of the module's own, fetch weights when it is. A
    quantised weight is of another class.
    """
    return (
        type(projection) is nn.Linear
        and type(projection.weight) in (nn.Parameter, torch.Tensor)
        and not (
            projection._forward_pre_hooks
            or projection._forward_hooks
            or projection._backward_pre_hooks
            or projection._backward_hooks
        )
        and "forward" not in projection.__dict__
    )


def _takes_slices(projection: nn.Module) -> bool:
    return getattr(type(projection), "takes_slices", False)


def _chosen(outputs: torch.Tensor, rows: Selection) -> torch.Tensor:
    return outputs if rows is None else outputs[..., _as_index(rows, outputs.device)]


def _widened(x: torch.Tensor, columns: int | slice | torch.Tensor, width: int) -> torch.Tensor:
    """Returns x [..., in] in its columns of zeros [..., width]."""
    if isinstance(columns, int) and columns == width:
        return x
    wide = x.new_zeros(*x.shape[:-1], width)
    wide[..., _as_index(columns, x.device)] = x
    return wide


def _as_index(chosen: int | slice | torch.Tensor, device: torch.device) -> slice | torch.Tensor:
    if isinstance(chosen, torch.Tensor):
        return to_device(chosen, device)
    return slice(chosen) if isinstance(chosen, int) else chosen
