"""Gates: a visual plan that can be differentiated.

A gate in [0, 1] stands before each thing that a plan can shut in a layer: the visual rows' attention update (`attend`), their
FFN (`ffn`), the reading of visual keys by text (`read`), each unit (`heads`, for visual queries and visual keys alike) and
each block of FFN neurons (`neurons`). With all gates at 1 the model is the dense one; gates at 0 and 1 are a `VisualPlan`,
and the model under them equals its compact execution. Withdrawal is the depth from which every `read` gate is shut.

While gates are learnt they are random, hard concrete (arXiv 1712.01312, eq. 10 to 12):
    s = sigmoid((logit u + log alpha) / beta),  z = clamp(s (zeta - gamma) + gamma, 0, 1),  u uniform in (0, 1).

Shapes: L layers, U units (key/value heads), N query heads, K blocks of neurons, M neurons, T text rows, C keys.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from .layer_plan import LayerPlan
from .visual_plan import VisualPlan

FAMILIES = ("attend", "ffn", "read", "heads", "neurons")
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # as published
SHIFT = BETA * math.log(-GAMMA / ZETA)


@dataclass(frozen=True)
class LayerGates:
    """One layer's gates, fp32 tensors: `attend`, `ffn`, `read` are scalars, `heads` [U], `neurons` [M]."""

    attend: torch.Tensor
    ffn: torch.Tensor
    read: torch.Tensor
    heads: torch.Tensor
    neurons: torch.Tensor

    def text_mask(
        self, mask: torch.Tensor | None, is_text: torch.Tensor, num_heads: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """What is added to the logits of text rows: log(read * heads) at visual keys, so that 0 is their removal.

        Args:
            mask: [B, 1, T, C] bool, true is visible; None: everything is.
            is_text: [C] bool, which keys are text.

        Returns:
            [B or 1, N, T or 1, C] of `dtype`.
        """
        gate = (self.read * self.heads).clamp(min=torch.finfo(torch.float32).tiny)  # log 0 has no gradient, only NaN
        bias = gate.log().repeat_interleave(num_heads // len(self.heads))
        bias = torch.where(is_text, 0.0, bias[:, None])[None, :, None]  # [1, N, 1, C]
        return (bias if mask is None else torch.where(mask, bias, -torch.inf)).to(dtype)

    def of_attention(self, update: torch.Tensor) -> torch.Tensor:
        """Visual rows' attention output [B, N, V, H], each unit's heads times its gate and `attend`."""
        gate = (self.attend * self.heads).repeat_interleave(update.shape[1] // len(self.heads))
        return update * gate.to(update.dtype)[:, None, None]

    def of_neurons(self, hidden: torch.Tensor) -> torch.Tensor:
        """Visual rows' FFN neurons [B, V, M] times their gates and `ffn`."""
        return hidden * (self.ffn * self.neurons).to(hidden.dtype)


class VisualGates(nn.Module):
    """The gates of a decoder, fp32 whatever the model's dtype.

    Args:
        log_alpha: per family, [L] (attend, ffn, read), [L, U] (heads) or [L, K] (neurons): large is open.
        learned: the same shapes, bool; a gate that is not learned stands at 1 where its log_alpha is above 0, else at 0.
        block: [L, M], the block that each FFN neuron belongs to.
    """

    def __init__(self, log_alpha: Mapping[str, torch.Tensor], learned: Mapping[str, torch.Tensor], block: torch.Tensor):
        super().__init__()
        self.log_alpha = nn.ParameterDict({name: nn.Parameter(log_alpha[name].float()) for name in FAMILIES})
        for name in FAMILIES:
            self.register_buffer(f"learned_{name}", learned[name], persistent=False)
            self.register_buffer(f"fixed_{name}", (log_alpha[name] > 0).float(), persistent=False)
        self.register_buffer("block", block, persistent=False)

    def learned(self, family: str) -> torch.Tensor:
        """Which gates of a family are learned: bool, the family's shape."""
        return self.get_buffer(f"learned_{family}")

    def fixed_open(self, family: str) -> torch.Tensor:
        """Which gates of a family are not learned and open: bool, the family's shape."""
        return ~self.learned(family) & (self.get_buffer(f"fixed_{family}") > 0)

    def forward(self) -> list[LayerGates]:
        """In training one draw of all gates; else their deterministic values (eq. 13)."""
        values = {}
        for name, log_alpha in self.log_alpha.items():
            noise = torch.zeros_like(log_alpha)
            if self.training:
                uniform = torch.rand_like(log_alpha).clamp(1e-6, 1 - 1e-6)
                noise = uniform.logit()
            soft = torch.sigmoid((noise + log_alpha) / BETA if self.training else log_alpha)
            values[name] = self._with_fixed(name, (soft * (ZETA - GAMMA) + GAMMA).clamp(0, 1))
        return [
            LayerGates(
                attend=values["attend"][index],
                ffn=values["ffn"][index],
                read=values["read"][index],
                heads=values["heads"][index],
                neurons=values["neurons"][index][block],
            )
            for index, block in enumerate(self.block)
        ]

    def open_probability(self) -> dict[str, torch.Tensor]:
        """Per family, the probability that a gate is not 0 (eq. 12); differentiable."""
        return {
            name: self._with_fixed(name, torch.sigmoid(log_alpha - SHIFT)) for name, log_alpha in self.log_alpha.items()
        }

    def plan(self, opened: Mapping[str, torch.Tensor], base: VisualPlan) -> VisualPlan:
        """The plan of gates at 0 and 1.

        Args:
            opened: bool, of the families' shapes.
            base: gives what no gate decides: `radius`, `bidirectional`.
        """
        layers = []
        for index, layer in enumerate(base.layers):
            units = opened["heads"][index].nonzero().flatten().tolist()
            neurons = opened["neurons"][index][self.block[index]].nonzero().flatten().tolist()
            ffn = 0 if not opened["ffn"][index] else None if len(neurons) == self.block.shape[1] else tuple(neurons)
            layers.append(
                LayerPlan(
                    attend=bool(opened["attend"][index]),
                    read=bool(opened["read"][index]),
                    heads=None if len(units) == opened["heads"].shape[1] else tuple(units),
                    ffn=ffn,
                    radius=layer.radius,
                    bidirectional=layer.bidirectional,
                )
            )
        while layers and not (layers[-1].read and layers[-1].heads != ()):
            layers.pop()
        return VisualPlan(layers=(*layers, *(LayerPlan(tokens=0.0),) * (len(base) - len(layers))))

    def _with_fixed(self, name: str, values: torch.Tensor) -> torch.Tensor:
        return torch.where(self.learned(name), values, self.get_buffer(f"fixed_{name}"))
