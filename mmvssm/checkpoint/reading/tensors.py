"""Tensors from the descriptions in pickles and the bytes of a mapped file."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from mmap import mmap
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..messages import printable
from .errors import CheckpointError
from .references import Inert, Reference

MAX_DIMS = 64  # of torch's loops over tensors
_MAX_EXTENT = 1 << 40  # of sizes and strides that no element is behind

_STORAGES = {
    f"{name}Storage": dtype
    for name, dtype in dict(
        Double=torch.float64,
        Float=torch.float32,
        Half=torch.float16,
        BFloat16=torch.bfloat16,
        Long=torch.int64,
        Int=torch.int32,
        Short=torch.int16,
        Char=torch.int8,
        Byte=torch.uint8,
        Bool=torch.bool,
        ComplexDouble=torch.complex128,
        ComplexFloat=torch.complex64,
    ).items()
}
# Storages that hold no plain numbers, by the bytes of an element.
_OTHER_STORAGES = {
    "UntypedStorage": 1,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
    "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
}


@dataclass(eq=False)
class Storage:
    """The numbers behind tensors, as a pickle describes them.

    Attributes:
        key: Its name in the file.
        dtype: Of its elements; ``None`` if the tensors tell, or cannot be read.
        itemsize: Bytes of an element.
        numel: Number of elements.
        data: The bytes, once they are found.
    """

    key: str
    dtype: torch.dtype | None
    itemsize: int
    numel: int
    data: torch.UntypedStorage | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.itemsize


@dataclass(frozen=True, eq=False)
class StorageView:
    """A part of a storage, as files of torch before 0.4 share them."""

    base: Storage
    offset: int
    numel: int


class TensorBuilder:
    """Makes the tensors of a file, first without their numbers, which may stand behind the pickle.

    Attributes:
        storages: What the pickle refers to, by key.
    """

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._unfilled: list[tuple[Tensor, Storage, int, tuple[int, ...], tuple[int, ...]]] = []

    def rebuilders(self) -> dict[tuple[str, str], Callable[..., Any]]:
        """What stands for torch's functions that rebuild tensors, by module and name."""
        makers: dict[str, Callable[..., Any]] = {
            "_rebuild_tensor": lambda storage, offset, size, stride: self._tensor(
                storage, offset, size, stride
            ),
            "_rebuild_tensor_v2": self._tensor_v2,
            "_rebuild_tensor_v3": self._tensor_v3,
            "_rebuild_parameter": lambda data, requires_grad, hooks: data,
            "_rebuild_parameter_with_state": lambda data, requires_grad, hooks, state: data,
        }

        def of_subclass(function: Any, cls: Any, arguments: Any, state: Any) -> Any:
            if isinstance(function, Reference) and isinstance(arguments, tuple):
                if function.module == "torch._utils" and function.name in makers:
                    return makers[function.name](*arguments)
                return Inert(function.origin)
            raise CheckpointError("is damaged: its pickle makes a tensor in no known way")

        return {
            **{("torch._utils", name): make for name, make in makers.items()},
            ("torch._tensor", "_rebuild_from_type_v2"): of_subclass,
            ("torch._tensor", "_rebuild_from_type"): of_subclass,
            ("torch.tensor", "_rebuild_from_type"): of_subclass,
        }

    def load(self, pid: Any) -> Any:
        """The storage of a persistent id ``("storage", type, key, location, numel, ...)``."""
        if not isinstance(pid, tuple) or not pid:
            raise CheckpointError("is damaged: it refers to a storage in no known way")
        if pid[0] == "module" and len(pid) == 4 and isinstance(pid[1], Reference):
            return pid[1]  # a class with its source text, which torch only warns about
        if pid[0] != "storage" or len(pid) not in (5, 6):
            raise CheckpointError("is damaged: it refers to a storage in no known way")
        _, kind, key, _, numel, *view = pid
        if not isinstance(key, str) or not _is_count(numel):
            raise CheckpointError("is damaged: it refers to a storage in no known way")
        dtype, itemsize = _element(kind)
        storage = self.storages.setdefault(key, Storage(key, dtype, itemsize, numel))
        if (storage.dtype, storage.itemsize, storage.numel) != (dtype, itemsize, numel):
            raise CheckpointError(f"is damaged: it describes storage {printable(key)} in two ways")
        if view and view[0] is not None:
            return _view(storage, view[0])
        return storage

    def fill(self) -> None:
        """Give the tensors the numbers of their storages, which have their data by now."""
        for tensor, storage, offset, size, stride in self._unfilled:
            tensor.set_(storage.data, offset, size, stride)
        self._unfilled.clear()

    def _tensor_v2(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        requires_grad: Any,
        hooks: Any,
        metadata: Any = None,
    ) -> Any:
        if metadata:  # conjugated or negated lazily
            return Inert("torch.Tensor")
        return self._tensor(storage, offset, size, stride)

    def _tensor_v3(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        requires_grad: Any,
        hooks: Any,
        dtype: Any,
        metadata: Any = None,
    ) -> Any:
        if metadata:
            return Inert("torch.Tensor")
        if not isinstance(dtype, torch.dtype):
            name = printable(dtype.origin) if isinstance(dtype, Inert) else "unknown type"
            raise CheckpointError(f"holds a tensor of {name}, which this torch does not know")
        if not _holds_numbers(dtype):
            return Inert("torch.Tensor")
        return self._tensor(storage, offset, size, stride, dtype)

    def _tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None
    ) -> Tensor:
        start = 0
        if isinstance(storage, StorageView):
            start, limit, storage = storage.offset, storage.numel, storage.base
        elif isinstance(storage, Storage):
            limit = storage.numel
        else:
            raise CheckpointError("is damaged: a tensor has no storage")
        if dtype is None:
            dtype = storage.dtype
            if dtype is None:
                raise CheckpointError("is damaged: a tensor has numbers of no known type")
        elif storage.dtype is None:
            limit = storage.nbytes // dtype.itemsize
        elif storage.dtype != dtype:
            raise CheckpointError("is damaged: a tensor and its storage differ in type")
        _check_geometry(storage.key, offset, size, stride, limit)
        tensor = torch.empty(0, dtype=dtype, device="cpu")
        self._unfilled.append((tensor, storage, start + offset, tuple(size), tuple(stride)))
        return tensor


def storage_bytes(
    file: BinaryIO, mapped: mmap, start: int, storage: Storage, byteorder: str
) -> torch.UntypedStorage:
    """The bytes of ``storage``, which stand in the file from ``start`` and lie within it.

    They are mapped, not read; those that stand at an address that their type cannot have, or in
    the byte order of another machine, are copied.
    """
    if not storage.nbytes:
        return torch.UntypedStorage(0)
    unit = storage.itemsize
    if storage.dtype is None:
        unit = 8  # the tensors' types are not known here
    elif storage.dtype.is_complex:
        unit //= 2
    if byteorder != sys.byteorder and storage.dtype is None:
        raise CheckpointError("holds numbers in another machine's byte order and of a rare type")
    swap = byteorder != sys.byteorder and unit > 1
    if not swap and start % unit == 0:
        data = torch.frombuffer(mapped, dtype=torch.uint8, count=storage.nbytes, offset=start)
        return data.untyped_storage()
    data = torch.empty(storage.nbytes, dtype=torch.uint8, device="cpu")
    file.seek(start)
    if file.readinto(data.numpy()) != storage.nbytes:
        raise CheckpointError("is cut off")
    if swap:
        data.numpy().view(np.dtype(f"u{unit}")).byteswap(inplace=True)
    return data.untyped_storage()


def _element(kind: Any) -> tuple[torch.dtype | None, int]:
    """Type and bytes of an element of a storage of the class ``kind``."""
    if isinstance(kind, Reference) and kind.module in ("torch", "torch.cuda", "torch.storage"):
        if kind.name in _STORAGES:
            return _STORAGES[kind.name], _STORAGES[kind.name].itemsize
        if kind.name in _OTHER_STORAGES:
            return None, _OTHER_STORAGES[kind.name]
    name = printable(kind.origin) if isinstance(kind, Inert) else "no known type"
    raise CheckpointError(f"holds numbers of {name}, which cannot be read")


def _holds_numbers(dtype: torch.dtype) -> bool:
    """Whether tensors are plain numbers, not quantised or packed."""
    integers = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    # torch gained these later
    larger = {getattr(torch, name, None) for name in ("uint16", "uint32", "uint64")}
    return dtype.is_floating_point or dtype.is_complex or dtype in {*integers, *larger}


def _view(storage: Storage, view: Any) -> StorageView:
    if not (isinstance(view, tuple) and len(view) == 3 and all(map(_is_count, view[1:]))):
        raise CheckpointError("is damaged: it refers to a part of a storage in no known way")
    _, offset, numel = view
    if storage.dtype is None or offset + numel > storage.numel:
        raise CheckpointError(f"is damaged: a part of storage {printable(storage.key)} leaves it")
    return StorageView(storage, offset, numel)


def _check_geometry(key: str, offset: Any, size: Any, stride: Any, limit: int) -> None:
    """Make sure that a tensor lies within its storage of ``limit`` elements."""
    if not (
        isinstance(size, tuple | list)
        and isinstance(stride, tuple | list)
        and len(size) == len(stride) <= MAX_DIMS
        and all(map(_is_count, (offset, *size, *stride)))
    ):
        raise CheckpointError(f"is damaged: a tensor of storage {printable(key)} has no real shape")
    # bytes that tensors repeat, by a stride of 0, would be a small file's way to a huge memory
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    fits = offset <= limit if 0 in size else last < limit and math.prod(size) <= limit
    if not fits:
        raise CheckpointError(
            f"is damaged: a tensor of shape {printable(tuple(size))} leaves storage {printable(key)},"
            f" which has {limit} elements"
        )
    # these have no elements behind them, but torch multiplies them
    if math.prod(n or 1 for n in size) > _MAX_EXTENT or max(stride, default=0) > _MAX_EXTENT:
        raise CheckpointError(
            f"is damaged: a tensor of storage {printable(key)} has an absurd shape"
        )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
