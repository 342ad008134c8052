"""NumPy arrays in pickles, read as tensors without NumPy."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor

from .unpickler import NO_FUNCTIONS, Functions, Inert, Reference, Unpickler, damaged, is_shape

#: Dtypes that tensors support; arrays of others become inert.
_DTYPES = {
    **dict(f2=torch.float16, f4=torch.float32, f8=torch.float64, b1=torch.bool, u1=torch.uint8),
    **dict(i1=torch.int8, i2=torch.int16, i4=torch.int32, i8=torch.int64),
}
_CORES = ("numpy.core", "numpy._core")  # before and since numpy 2


class _Type(Inert):
    """A NumPy dtype; ``dtype`` is None if tensors do not support it."""

    __slots__ = ("dtype",)

    def __init__(self, name: Any, *_: Any) -> None:
        super().__init__("numpy.dtype")
        self.dtype = _DTYPES.get(name) if isinstance(name, str) else None


class ArrayUnpickler(Unpickler):
    """An :class:`Unpickler` that reads arrays as tensors, in memory bounded by the file's size."""

    def __init__(
        self, file: BinaryIO, size: int, functions: Functions = NO_FUNCTIONS, *more: Any
    ) -> None:
        own: dict[str, Callable[..., Any]] = {
            **{f"{core}.multiarray._reconstruct": self._begin for core in _CORES},
            **{f"{core}.numeric._frombuffer": self._of_buffer for core in _CORES},
            **{"numpy.dtype": _Type, "_codecs.encode": self._encode},
            # empty bytes in old protocols
            "builtins.bytes": lambda *data: Inert("builtins.bytes") if data else bytearray(),
        }
        super().__init__(file, size, {**own, **functions}, *more)
        self._begun: dict[int, Tensor] = {}

    def load(self) -> Any:
        """Return the value of the pickle; raise CheckpointError also for an array without data."""
        value = super().load()
        if self._begun:
            raise damaged("an array has no data")
        return value

    def _begin(self, kind: Any, *_: Any) -> Any:
        """Begin a tensor whose data follow as its state; other classes become inert."""
        if not isinstance(kind, Reference) or kind.origin != "numpy.ndarray":
            return Inert("numpy.ndarray")
        tensor = torch.empty(0, device="cpu")
        self._begun[id(tensor)] = tensor
        return tensor

    def _encode(self, text: Any, encoding: Any = None, *_: Any) -> Any:
        """Return the bytes that old protocols store as text."""
        is_bytes = isinstance(text, str) and encoding == "latin1"
        return self._own(text) if is_bytes else Inert("_codecs.encode")

    def _own(self, data: Any) -> bytearray:
        """Return writable bytes, counting copies against the size of the file."""
        if isinstance(data, bytearray):
            return data
        if not isinstance(data, bytes | str):
            raise damaged("an array has no bytes")
        self.take(len(data))
        return bytearray(data, "latin1") if isinstance(data, str) else bytearray(data)

    def _of_buffer(self, data: Any, kind: Any, shape: Any, order: Any) -> Any:
        return self._make(shape, kind, order == "F", data)

    def _make(self, shape: Any, kind: Any, is_fortran: Any, data: Any) -> Any:
        """Return the tensor, in row-major order or, with ``is_fortran``, column-major order."""
        if not isinstance(kind, _Type) or kind.dtype is None:
            return Inert("numpy.ndarray")
        data = self._own(data)
        if not is_shape(shape) or len(data) != math.prod(shape) * kind.dtype.itemsize:
            raise damaged(f"an array has {len(data)} bytes, which do not fit its shape")
        if not data:
            return torch.empty(shape, dtype=kind.dtype, device="cpu")
        sizes = shape[::-1] if is_fortran else shape
        tensor = torch.frombuffer(data, dtype=kind.dtype).view(sizes)
        return tensor.permute(tuple(range(len(sizes))[::-1])) if is_fortran else tensor

    def _build(self) -> None:
        """Apply the byte order of a dtype, or the data of an array."""
        state, target = self.stack[-1], self.stack[-2]
        if isinstance(target, _Type):
            # another byte order, or a structured dtype
            if not isinstance(state, tuple) or state[1:2] not in (("<",), ("|",)):
                target.dtype = None
        elif self._begun.pop(id(target), None) is not None:
            _, *numbers = state
            made = self._make(*numbers)
            if isinstance(made, Tensor):
                target.data = made  # earlier references to it get the data as well
            else:
                self.stack[-2] = made  # other references keep an empty tensor
        super()._build()

    dispatch: ClassVar[dict[int, Callable]] = {**Unpickler.dispatch, pickle.BUILD[0]: _build}
