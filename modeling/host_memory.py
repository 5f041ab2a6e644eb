"""Copies between a device and the host's memory.

A copy to the host makes it wait until the device has done all that it was asked. Meanwhile it can ask for nothing, and
afterwards the device waits for the host. So what the host has to know is copied at once, at the begin of a forward. The
rest is derived from it on the host. A copy to the device need not wait.
"""

from typing import TypeVar

import torch

T = TypeVar("T", torch.Tensor, torch.Tensor | None)


def to_host(*tensors: T) -> list[T]:
    """Returns integer and bool tensors in the host's memory. All that lie on a device come in one copy."""
    far = [tensor for tensor in tensors if tensor is not None and tensor.device.type != "cpu"]
    if not far:
        return list(tensors)
    together = torch.cat([tensor.to(far[0].device).flatten().long() for tensor in far]).cpu()
    near = iter(together.split([tensor.numel() for tensor in far]))
    return [
        next(near).view(tensor.shape).to(tensor.dtype) if tensor is not None and tensor.device.type != "cpu" else tensor
        for tensor in tensors
    ]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns a tensor on the device. The host does not wait for it."""
    return tensor.to(device, non_blocking=True)
