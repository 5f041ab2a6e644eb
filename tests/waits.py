"""Counts the operations of a model that make the host wait for its device, on a machine that has no such device.

`Waits` pretends that there is one. A tensor "on" it is a tensor in host memory that says it lies elsewhere. So what
really lies on the host is told apart from what lies on the device, as it is with a GPU. An operation that gets some of
its tensors from here and some from there fails, as it would there.
"""

import traceback
from collections import Counter
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE, HOST = torch.device("lazy", 0), torch.device("cpu")  # torch knows that device, and nobody has it
aten = torch.ops.aten

SIZE_FROM_VALUES = {
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.unique_dim_consecutive,
    aten.bincount,
}
"""Their output's size, which the host must know, depends on values."""
ANSWERS = {aten._local_scalar_dense, aten.equal, aten.is_nonzero}
"""They give the host a value."""
INDEXED = {
    aten.index,
    aten.index_put,
    aten.index_put_,
    aten._index_put_impl_,
    aten._unsafe_index,
    aten._unsafe_index_put,
}
"""They take a mask as the indices of its true elements."""


class OnDevice(torch.Tensor):
    """A tensor on the pretended device. `elem` holds its values."""

    elem: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, elem: torch.Tensor) -> "OnDevice":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device=DEVICE,
        )
        made.elem = elem
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {})

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
        same = self.is_contiguous(memory_format=memory_format)
        return self if same else self.clone(memory_format=memory_format)

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.dim() == 0 else repr(self), spec)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self) -> Any:
        return self.cpu().numpy()

    def __repr__(self) -> str:
        return f"OnDevice({self.elem!r})"


def on_device(values: Any) -> Any:
    """Returns values, or a nest of them, on the pretended device. A model is moved as it is."""
    if isinstance(values, nn.Module):
        moved: dict[int, torch.Tensor] = {}  # tied weights stay tied
        for module in values.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        held[name] = moved.setdefault(id(tensor), _moved(tensor))
        return values
    return tree_map(lambda value: OnDevice(value) if isinstance(value, torch.Tensor) else value, values)


def _moved(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(OnDevice(tensor.data), requires_grad=tensor.requires_grad)
    return OnDevice(tensor)


def on_host(values: Any) -> Any:
    """Returns the values behind those on the pretended device, or a nest of them. It counts as nothing."""
    return tree_map(lambda value: value.elem if isinstance(value, OnDevice) else value, values)


class Waits(TorchDispatchMode):
    """Counts inside its block.

    Attributes:
        where: how often each operation at each line of Python made the host wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.where: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return sum(self.where.values())

    def __enter__(self) -> "Waits":
        self._around = ExitStack()
        self._around.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(..., device=) is seen to copy
        self._around.enter_context(_ItemByItem())
        self._around.enter_context(patch("torch.is_autocast_enabled", lambda *device: False))  # it knows no such device
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._around.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if _waits(func, args, kwargs or {}):
            self.where[f"{func.overloadpacket.__name__} at {_line()}"] += 1
        return _run(func, args, kwargs or {})


class _ItemByItem(TorchFunctionMode):
    """Shows how `torch.tensor` reads a list of tensors: each of them by itself, where no mode of dispatch sees it."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.tensor:
            args = tree_map(lambda value: value.item() if isinstance(value, OnDevice) else value, args)
        return func(*args, **(kwargs or {}))


def _waits(func: Any, args: tuple, kwargs: dict) -> bool:
    """Returns whether an operation waits for the device."""
    packet = func.overloadpacket
    if packet in (aten._to_copy, aten.copy_) and args[0].numel() == 0:
        return False  # nothing is copied
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, OnDevice)]
    if packet is aten._to_copy:
        there, here = kwargs.get("device"), args[0].device
        return there is not None and there.type != here.type and not _asynchronous(args[0], kwargs)
    if packet is aten.copy_:
        return args[0].device.type != args[1].device.type and not (args[2] if len(args) > 2 else False)
    if not given:
        return False
    if packet in SIZE_FROM_VALUES or packet in ANSWERS:
        return True
    if packet is aten.repeat_interleave:
        return kwargs.get("output_size") is None
    if packet in INDEXED:
        # An index in host memory is copied to the device, which waits as well.
        indices = [index for index in args[1] if index is not None]
        return any(index.dtype in (torch.bool, torch.uint8) or not isinstance(index, OnDevice) for index in indices)
    return False


def _asynchronous(source: torch.Tensor, kwargs: dict) -> bool:
    """Returns whether a copy does not wait. Only one from the host can be so: the host may not read before the end."""
    return bool(kwargs.get("non_blocking")) and not isinstance(source, OnDevice)


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    """Runs an operation on the values, and puts what it gives where it would lie."""
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    far = any(isinstance(tensor, OnDevice) for tensor in tensors)
    if kwargs.get("device") is not None:
        far = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs = {**kwargs, "device": HOST}
    elif far and func.overloadpacket not in (*INDEXED, aten.copy_):
        strangers = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim() > 0]
        assert not strangers, f"{func}: {len(strangers)} of its tensors lie on the host, the others on the device"
    out = func(*tree_map(_value, args), **tree_map(_value, kwargs))
    if func._schema.is_mutable and func.overloadpacket.__name__.endswith("_"):
        return args[0]  # it was changed in place
    return tree_map(lambda value: OnDevice(value) if far and isinstance(value, torch.Tensor) else value, out)


def _value(value: Any) -> Any:
    return value.elem if isinstance(value, OnDevice) else value


def _line() -> str:
    """Returns the innermost line of Python that is not torch's."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and frame.filename != __file__:
            return f"{'/'.join(frame.filename.rsplit('/', 2)[1:])}:{frame.lineno}"
    return "?"
