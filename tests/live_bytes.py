"""Counts the bytes of tensors that are alive, at every operation of torch."""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class LiveBytes(TorchDispatchMode):
    """Counts the tensors that operations inside the block make.

    Attributes:
        peak: the most bytes that were alive after any operation.
        largest: the most elements that any of these tensors held.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.largest = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._given: dict[int, torch.UntypedStorage] = {}  # held, so that no other storage gets their addresses

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in tensors_in((args, kwargs)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._alive:
                self._given[storage._cdata] = storage  # weights and inputs
        outcome = function(*args, **(kwargs or {}))
        for tensor in tensors_in(outcome):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._given and tensor.device.type != "meta":
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self.largest = max(self.largest, storage.nbytes() // tensor.itemsize)
        self.peak = max(self.peak, self.now)
        return outcome

    @property
    def now(self) -> int:
        """The bytes that are alive."""
        self._alive = {key: held for key, held in self._alive.items() if not held[0].expired()}
        return sum(size for _, size in self._alive.values())


def tensors_in(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]
