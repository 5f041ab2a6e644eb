"""A call as a CUDA graph, which the device runs without waiting for the host to start each of its kernels.

At batch 1 a layer's kernels take less time than the host takes to start them, so the clock shows the host and not the
work. A graph shows the work.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WARM_UP = 2
"""Runs before a capture, in which libraries choose their kernels and take their working memory."""


class CapturedCall:
    """Runs the kernels of a call again, on the same inputs. It returns nothing.

    Copies of indices from the host are made once and left out of the graph, as the host's tensors do not change.

    Args:
        call: works on one CUDA device and waits for nothing. A wait is an error of torch.
    """

    @torch.inference_mode()
    def __init__(self, call: Callable[[], object]):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                call()
            with _CopiesToDevice() as copies:
                call()
        torch.cuda.current_stream().wait_stream(stream)
        self._copies = copies.made  # the graph reads them
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph), _Remembered(self._copies):
            call()

    def __call__(self) -> None:
        self._graph.replay()


class _CopiesToDevice(TorchDispatchMode):
    """Remembers what is copied from the host to the device, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[torch.Tensor] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if _copies_to_device(operation, args, kwargs or {}):
            self.made.append(result)
        return result


class _Remembered(TorchDispatchMode):
    """Gives the copies that were made before, in order, in place of new ones."""

    def __init__(self, made: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._next: Iterator[torch.Tensor] = iter(made)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if _copies_to_device(operation, args, kwargs or {}):
            return next(self._next)
        return operation(*args, **(kwargs or {}))


def _copies_to_device(operation, args: tuple, kwargs: dict) -> bool:
    """Returns whether an operation copies a tensor from the host to a device."""
    if operation.overloadpacket not in (torch.ops.aten.to, torch.ops.aten._to_copy) or args[0].device.type != "cpu":
        return False
    device = kwargs.get("device", args[1] if len(args) > 1 else None)
    return isinstance(device, torch.device) and device.type == "cuda"
