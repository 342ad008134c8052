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
from .allowlist import Inert, Reference
from .errors import CheckpointError, damaged
from .unpickler import is_count

MAX_DIMS = 64  # of torch's loops over tensors
_MAX_EXTENT = 1 << 40  # of sizes and strides without elements

_STORAGES = {
    **dict(DoubleStorage=torch.float64, FloatStorage=torch.float32, HalfStorage=torch.float16),
    **dict(LongStorage=torch.int64, IntStorage=torch.int32, ShortStorage=torch.int16),
    **dict(CharStorage=torch.int8, ByteStorage=torch.uint8, BoolStorage=torch.bool),
    **dict(ComplexDoubleStorage=torch.complex128, ComplexFloatStorage=torch.complex64),
    "BFloat16Storage": torch.bfloat16,
}
# Storages that hold no plain numbers, by the bytes of an element.
_OTHER_STORAGES = {"UntypedStorage": 1, "QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4}
_OTHER_STORAGES |= {"QUInt4x2Storage": 1, "QUInt2x4Storage": 1}


@dataclass(eq=False)
class Storage:
    """The numbers of tensors, as a pickle describes them.

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


class TensorBuilder:
    """Makes the tensors of a file, first without their numbers, which may come after the pickle.

    Attributes:
        storages: What the pickle refers to, by key.
    """

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._unfilled: list[tuple[Tensor, Storage, int, tuple[int, ...], tuple[int, ...]]] = []

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Return functions that replace torch's that rebuild tensors, by their names."""
        makers: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor_v2,
            "torch._utils._rebuild_tensor_v3": self._tensor_v3,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
        }

        def of_subclass(function: Reference, cls: Any, arguments: tuple, state: Any) -> Any:
            make = makers.get(function.origin)
            return Inert(function.origin) if make is None else make(*arguments)

        modules = ("torch._tensor._rebuild_from_type_v2", "torch._tensor._rebuild_from_type")
        return makers | dict.fromkeys((*modules, "torch.tensor._rebuild_from_type"), of_subclass)

    def load(self, pid: Any) -> Any:
        """Return the storage of a persistent id ``("storage", type, key, location, numel, ...)``.

        Files of torch before 0.4 may name a part of it, which gives storage, offset and length.
        """
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module":
            return pid[1]  # a class with its source text, which torch only warns about
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"):
            raise damaged("it refers to a storage in no known way")
        _, kind, key, _, numel, *part = pid
        if not isinstance(key, str) or not is_count(numel):
            raise damaged("it refers to a storage in no known way")
        dtype, itemsize = _element(kind)
        storage = self.storages.setdefault(key, Storage(key, dtype, itemsize, numel))
        if (storage.dtype, storage.itemsize, storage.numel) != (dtype, itemsize, numel):
            raise damaged(f"it describes storage {printable(key)} in two ways")
        if not part or part[0] is None:
            return storage, 0, numel
        _, start, length = part[0]
        if not (is_count(start) and is_count(length)) or dtype is None or start + length > numel:
            raise damaged(f"a part of storage {printable(key)} leaves it")
        return storage, start, length

    def fill(self) -> None:
        """Give the tensors the numbers of their storages, which have their data by now."""
        for tensor, storage, offset, size, stride in self._unfilled:
            tensor.set_(storage.data, offset, size, stride)
        self._unfilled.clear()

    def _tensor_v2(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
        _requires_grad, _hooks, *metadata = rest
        if metadata and metadata[0]:  # conjugated or negated lazily
            return Inert("torch.Tensor")
        return self._tensor(storage, offset, size, stride)

    def _tensor_v3(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
        _requires_grad, _hooks, dtype, *metadata = rest
        if not isinstance(dtype, torch.dtype):
            name = printable(dtype.origin) if isinstance(dtype, Inert) else "unknown type"
            raise CheckpointError(f"holds a tensor of {name}, which this torch does not know")
        if (metadata and metadata[0]) or not _holds_numbers(dtype):
            return Inert("torch.Tensor")
        return self._tensor(storage, offset, size, stride, dtype)

    def _tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None
    ) -> Tensor:
        storage, start, limit = storage
        if dtype is None:
            dtype = storage.dtype
            if dtype is None:
                raise damaged("a tensor has numbers of no known type")
        elif storage.dtype is None:
            limit = storage.nbytes // dtype.itemsize
        elif storage.dtype != dtype:
            raise damaged("a tensor and its storage differ in type")
        _check_geometry(storage.key, offset, size, stride, limit)
        tensor = torch.empty(0, dtype=dtype, device="cpu")
        self._unfilled.append((tensor, storage, start + offset, tuple(size), tuple(stride)))
        return tensor


def storage_bytes(
    file: BinaryIO, mapped: mmap, start: int, storage: Storage, byteorder: str
) -> torch.UntypedStorage:
    """Return the bytes of ``storage``, which begin at ``start`` and lie within the file.

    They are mapped, not read; those at an address that their type cannot have, or in the byte
    order of another machine, are copied.
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
        raise damaged("a storage ends early")
    if swap:
        data.numpy().view(np.dtype(f"u{unit}")).byteswap(inplace=True)
    return data.untyped_storage()


def _element(kind: Any) -> tuple[torch.dtype | None, int]:
    """Return type and bytes of an element of a storage of the class ``kind``."""
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


def _check_geometry(key: str, offset: Any, size: Any, stride: Any, limit: int) -> None:
    """Make sure that a tensor lies within its storage of ``limit`` elements."""
    if not (
        isinstance(size, tuple | list)
        and isinstance(stride, tuple | list)
        and len(size) == len(stride) <= MAX_DIMS
        and all(map(is_count, (offset, *size, *stride)))
    ):
        raise damaged(f"a tensor of storage {printable(key)} has no real shape")
    # bytes that tensors repeat, by a stride of 0, would be a small file's way to a huge memory
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    fits = offset <= limit if 0 in size else last < limit and math.prod(size) <= limit
    if not fits:
        raise damaged(
            f"a tensor of shape {printable(tuple(size))} leaves storage {printable(key)}, which has"
            f" {limit} elements"
        )
    # torch multiplies these
    if math.prod(n or 1 for n in size) > _MAX_EXTENT or max(stride, default=0) > _MAX_EXTENT:
        raise damaged(f"a tensor of storage {printable(key)} has an absurd shape")
