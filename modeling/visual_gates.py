"""Gates make a visual plan differentiable.

A gate is a number in [0, 1]. In each layer, gates stand before what a plan can shut:

- `attend`: the attention update of visual rows,
- `ffn`: their FFN,
- `read`: the reading of visual keys by text,
- `heads`: each unit, for visual queries and visual keys alike,
- `neurons`: each block of FFN neurons.

If all gates are 1, the model is the dense one. Gates at 0 and 1 are a `VisualPlan`.
The model under such gates equals the model that executes the plan.
Visual tokens are withdrawn at the depth from which every `read` gate is 0.

While gates are learned they are random, with a hard concrete distribution (arXiv 1712.01312, eq. 10 to 12):
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

GATE_KINDS = ("attend", "ffn", "read", "heads", "neurons")
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # as published
SHIFT = BETA * math.log(-GAMMA / ZETA)  # from log alpha to the logit of a gate's being above 0


@dataclass(frozen=True)
class LayerGates:
    """One layer's gates, fp32 tensors. `attend`, `ffn` and `read` are scalars, `heads` is [U], `neurons` is [M]."""

    attend: torch.Tensor
    ffn: torch.Tensor
    read: torch.Tensor
    heads: torch.Tensor
    neurons: torch.Tensor

    def text_mask(
        self, mask: torch.Tensor | None, is_text: torch.Tensor, num_heads: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Returns what is added to the attention logits of text rows, [B or 1, N, T or 1, C] of `dtype`.

        At visual keys that is log(read * heads), so that a gate of 0 removes them.

        Args:
            mask: [B, 1, T, C] bool, true where the row sees the key. None means everywhere.
            is_text: [C] bool, true at text keys.
            num_heads: N.
        """
        gate = (self.read * self.heads).clamp(min=torch.finfo(torch.float32).tiny)  # log 0 has no gradient, only NaN
        bias = gate.log().repeat_interleave(num_heads // len(self.heads))
        bias = torch.where(is_text, 0.0, bias[:, None])[None, :, None]  # [1, N, 1, C]
        return (bias if mask is None else torch.where(mask, bias, -torch.inf)).to(dtype)

    def gate_attention(self, update: torch.Tensor) -> torch.Tensor:
        """Returns the attention output of visual rows [B, N, V, H], each head times its unit's gate and `attend`."""
        gate = (self.attend * self.heads).repeat_interleave(update.shape[1] // len(self.heads))
        return update * gate.to(update.dtype)[:, None, None]

    def gate_neurons(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the FFN neurons of visual rows [B, V, M] times their gates and `ffn`."""
        return hidden * (self.ffn * self.neurons).to(hidden.dtype)


class VisualGates(nn.Module):
    """The gates of a decoder. They are fp32, whatever the model's dtype.

    Args:
        log_alpha: for each kind of gate, [L] (attend, ffn, read), [L, U] (heads) or [L, K] (neurons). A large value
            means open.
        learned: the same shapes, bool. A gate that is not learned is 1 if its log_alpha is above 0, else 0.
        block: [L, M] long, the block that each FFN neuron belongs to.
    """

    block: torch.Tensor

    def __init__(self, log_alpha: Mapping[str, torch.Tensor], learned: Mapping[str, torch.Tensor], block: torch.Tensor):
        super().__init__()
        self.log_alpha = nn.ParameterDict({name: nn.Parameter(log_alpha[name].float()) for name in GATE_KINDS})
        for name in GATE_KINDS:
            self.register_buffer(f"learned_{name}", learned[name], persistent=False)
            self.register_buffer(f"fixed_{name}", (log_alpha[name] > 0).float(), persistent=False)
        self.register_buffer("block", block, persistent=False)

    def learned(self, kind: str) -> torch.Tensor:
        """Returns which gates of a kind are learned, bool, in the shape of that kind's log_alpha."""
        return self.get_buffer(f"learned_{kind}")

    def fixed_open(self, kind: str) -> torch.Tensor:
        """Returns which gates of a kind are open and not learned, bool, in the shape of that kind's log_alpha."""
        return ~self.learned(kind) & (self.get_buffer(f"fixed_{kind}") > 0)

    def forward(self) -> list[LayerGates]:
        """Returns each layer's gates. In training they are one draw, else their deterministic values (eq. 13)."""
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
        """Returns, for each kind of gate, the probability that a gate is not 0 (eq. 12). It is differentiable."""
        return {
            name: self._with_fixed(name, torch.sigmoid(log_alpha - SHIFT)) for name, log_alpha in self.log_alpha.items()
        }

    def plan(self, opened: Mapping[str, torch.Tensor], base: VisualPlan) -> VisualPlan:
        """Returns the plan of gates at 0 and 1.

        Args:
            opened: for each kind of gate, bool, in the shape of its log_alpha. True is 1.
            base: the plan that `radius` and `bidirectional` are taken from, for no gate decides these.
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
