"""The rotary embedding of a forward, which leaves nothing behind in the module that computes it.

Some kinds have other frequencies for longer prompts ("dynamic" and "longrope"). The stock modules write those of the
last forward into their own buffers. A forward in another thread would then read them, and so would a later one.
"""

import copy
from typing import Any

import torch
from torch import nn


def rotary_embedding(
    rotary: nn.Module, states: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns cosine and sine, each [B or 1, S, head_dim], as the stock module gives them in its first forward.

    Args:
        rotary: the stock module.
        states: a tensor of the wanted dtype and device.
        positions: [B or 1, S], or [3, B or 1, S] for a module that takes three positions a row.
    """
    module: Any = rotary
    if not ("dynamic" in module.rope_type or module.rope_type == "longrope"):
        return module(states, positions)
    module = copy.copy(rotary)
    module._buffers = {name: buffer.clone() for name, buffer in rotary.named_buffers(recurse=False)}
    return module.forward(states, positions)  # not by a call: hooks of other tools are for the module itself
