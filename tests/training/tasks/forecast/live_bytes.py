"""Counts the bytes that tensors really hold while a function runs, on the CPU too, where torch keeps no such count."""

import weakref

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside this context `now` is the bytes of storages made in it that are alive, and `peak` the most they were."""

    def __init__(self):
        super().__init__()
        self.now, self.peak = 0, 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        result = function(*arguments, **(kwargs or {}))
        given = {
            _storage(tensor)._cdata for tensor in tree_leaves((arguments, kwargs)) if hasattr(tensor, "untyped_storage")
        }
        for tensor in tree_leaves(result):
            if hasattr(tensor, "untyped_storage") and tensor.device.type != "meta":
                storage = _storage(tensor)
                if storage._cdata not in given | self._alive:
                    self._alive.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._end, storage._cdata, storage.nbytes())
        return result

    def _end(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def _storage(tensor):
    return tensor.untyped_storage()
