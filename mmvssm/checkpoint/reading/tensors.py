"""Tensors from the descriptions in pickles and the bytes of a mapped file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from mmap import mmap
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mmvssm.messages import printable

from .allowlist import CheckpointError, Inert, Reference, damaged

MAX_DIMS = 64  # of torch's loops over tensors
_MAX_EXTENT = 1 << 40  # of sizes and strides without elements
_NO_PART = ([], [None])  # before torch 0.4, files named parts of storages

#: Types of the elements of storages; None where the tensors tell.
_STORAGES = {
    **dict(DoubleStorage=torch.float64, FloatStorage=torch.float32, HalfStorage=torch.float16),
    **dict(LongStorage=torch.int64, IntStorage=torch.int32, ShortStorage=torch.int16),
    **dict(CharStorage=torch.int8, ByteStorage=torch.uint8, BoolStorage=torch.bool),
    **dict(ComplexDoubleStorage=torch.complex128, ComplexFloatStorage=torch.complex64),
    **dict(BFloat16Storage=torch.bfloat16, UntypedStorage=None),
    # these hold no plain numbers
    **dict.fromkeys(("QInt8Storage", "QUInt8Storage", "QUInt4x2Storage", "QUInt2x4Storage")),
}


@dataclass(eq=False)
class Storage:
    """The numbers of tensors, as a pickle describes them; ``data`` are the bytes, once found."""

    key: str
    dtype: torch.dtype | None
    numel: int
    data: torch.UntypedStorage | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * (1 if self.dtype is None else self.dtype.itemsize)


class TensorBuilder:
    """Makes the tensors of a file, first without their numbers, which may come after the pickle."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._unfilled: list[tuple[Tensor, Storage, int, tuple[int, ...], tuple[int, ...]]] = []

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Return functions that replace torch's that rebuild tensors, by their names."""
        names = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
        makers: dict[str, Callable[..., Any]] = {
            **dict.fromkeys((f"torch._utils.{name}" for name in names), self._tensor),
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
        }

        def of_subclass(function: Reference, cls: Any, arguments: tuple, state: Any) -> Any:
            make = makers.get(function.origin)
            return Inert(function.origin) if make is None else make(*arguments)

        modules = ("torch._tensor._rebuild_from_type_v2", "torch._tensor._rebuild_from_type")
        return makers | dict.fromkeys((*modules, "torch.tensor._rebuild_from_type"), of_subclass)

    def load(self, pid: Any) -> Any:
        """Return the storage of an id ``("storage", type, key, location, numel, None)``."""
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module":
            return pid[1]  # a class with its source text, which torch only warns about
        word, kind, key, _, numel, *part = pid
        if (
            word != "storage"
            or type(key) is not str
            or not _is_count(numel)
            or part not in _NO_PART
        ):
            raise damaged("it refers to a storage in no known way")
        if not isinstance(kind, Reference) or kind.name not in _STORAGES:
            name = printable(kind.origin) if isinstance(kind, Inert) else "no known type"
            raise CheckpointError(f"holds numbers of {name}, which cannot be read")
        dtype = _STORAGES[kind.name]
        storage = self.storages.setdefault(key, Storage(key, dtype, numel))
        if (storage.dtype, storage.numel) != (dtype, numel):
            raise damaged(f"it describes storage {printable(key)} in two ways")
        return storage

    def fill(self) -> None:
        """Give the tensors the numbers of their storages, which have their data by now."""
        for tensor, storage, offset, size, stride in self._unfilled:
            tensor.set_(storage.data, offset, size, stride)
        self._unfilled.clear()

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Any:
        """Make a tensor; ``more`` are requires_grad, hooks, then dtype and metadata, if given."""
        dtype = storage.dtype
        for value in more[2:]:
            if isinstance(value, Inert):
                name = printable(value.origin)
                raise CheckpointError(f"holds a tensor of {name}, which this torch does not know")
            if isinstance(value, torch.dtype):
                dtype = value
        is_lazy = any(isinstance(value, dict) and value for value in more[2:])
        if is_lazy or str(dtype).startswith(("torch.q", "torch.bits")):
            return Inert("torch.Tensor")
        if dtype is None or storage.dtype not in (None, dtype):
            raise damaged("a tensor and its storage differ in type")
        _check_geometry(storage.key, offset, size, stride, storage.nbytes // dtype.itemsize)
        tensor = torch.empty(0, dtype=dtype, device="cpu")
        self._unfilled.append((tensor, storage, offset, tuple(size), tuple(stride)))
        return tensor


def storage_bytes(
    file: BinaryIO, mapped: mmap, start: int, storage: Storage
) -> torch.UntypedStorage:
    """Return the bytes of ``storage`` from ``start`` on: mapped, or copied from an odd address."""
    if not storage.nbytes:
        return torch.UntypedStorage(0)
    if start % (8 if storage.dtype is None else storage.dtype.itemsize) == 0:
        data = torch.frombuffer(mapped, dtype=torch.uint8, count=storage.nbytes, offset=start)
        return data.untyped_storage()
    data = torch.empty(storage.nbytes, dtype=torch.uint8, device="cpu")
    file.seek(start)
    if file.readinto(data.numpy()) != storage.nbytes:
        raise damaged("a storage ends early")
    return data.untyped_storage()


def _check_geometry(key: str, offset: Any, size: Any, stride: Any, limit: int) -> None:
    """Make sure that a tensor lies within its storage of ``limit`` elements."""
    if not (
        isinstance(size, tuple | list)
        and isinstance(stride, tuple | list)
        and len(size) == len(stride) <= MAX_DIMS
        and all(map(_is_count, (offset, *size, *stride)))
    ):
        raise damaged(f"a tensor of storage {printable(key)} has no real shape")
    # bytes that tensors repeat, by a stride of 0, would be a small file's way to a huge memory
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    fits = offset <= limit if 0 in size else last < limit and math.prod(size) <= limit
    # torch multiplies sizes and strides without elements, too
    extent = max(math.prod(n or 1 for n in size), *stride, 0)
    if not fits or extent > _MAX_EXTENT:
        raise damaged(
            f"a tensor of shape {printable(tuple(size))} leaves storage {printable(key)} of"
            f" {limit} elements"
        )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
