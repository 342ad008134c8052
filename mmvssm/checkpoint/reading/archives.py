"""Readers of the two formats of ``torch.save``: zip archives, and the one before torch 1.6."""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from mmap import mmap
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mmvssm.files import Progress
from mmvssm.messages import printable

from .arrays import ArrayUnpickler as Unpickler
from .unpickler import (
    MAX_EXTENT,
    CheckpointError,
    Inert,
    Reference,
    damaged,
    is_count,
    is_shape,
    kind_of,
)

#: First value of a file of the format before torch 1.6.
MAGIC = 0x1950A86A20F9469CFC6C
_CHUNK = 4 << 20
_LOCAL_HEADER = 30  # bytes, then the name and extra fields
_MAX_DIRECTORY = 8 << 20  # bytes, for about 70,000 members

#: Dtypes of storages; None if only their tensors have one.
_STORAGES = {
    **dict(DoubleStorage=torch.float64, FloatStorage=torch.float32, HalfStorage=torch.float16),
    **dict(LongStorage=torch.int64, IntStorage=torch.int32, ShortStorage=torch.int16),
    **dict(CharStorage=torch.int8, ByteStorage=torch.uint8, BoolStorage=torch.bool),
    **dict(ComplexDoubleStorage=torch.complex128, ComplexFloatStorage=torch.complex64),
    **dict(BFloat16Storage=torch.bfloat16, UntypedStorage=None),
    **dict.fromkeys(("QInt8Storage", "QUInt8Storage", "QUInt4x2Storage", "QUInt2x4Storage")),
}


@dataclass(eq=False)
class Storage:
    """A storage as described in a pickle; ``data`` holds its bytes once they are found."""

    key: str
    dtype: torch.dtype | None
    numel: int
    data: torch.UntypedStorage | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * (1 if self.dtype is None else self.dtype.itemsize)


class TensorBuilder:
    """Builder of a file's tensors, first without data, which may follow the pickle."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._unfilled: list[tuple[Tensor, Storage, int, tuple[int, ...], tuple[int, ...]]] = []

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Return replacements for torch's functions that rebuild tensors, by name."""
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
        is_known = word == "storage" and type(key) is str and is_count(numel)
        if not is_known or part not in ([], [None]):  # before torch 0.4, parts of storages
            raise damaged("it refers to a storage in an unknown way")
        if not isinstance(kind, Reference) or kind.name not in _STORAGES:
            raise CheckpointError(f"holds numbers of {kind_of(kind)}, which cannot be read")
        dtype = _STORAGES[kind.name]
        storage = self.storages.setdefault(key, Storage(key, dtype, numel))
        if (storage.dtype, storage.numel) != (dtype, numel):
            raise damaged(f"it describes storage {printable(key)} in two ways")
        return storage

    def fill(self) -> None:
        """Attach the data of the storages to the tensors."""
        for tensor, storage, offset, size, stride in self._unfilled:
            tensor.set_(storage.data, offset, size, stride)
        self._unfilled.clear()

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Any:
        """Build a tensor; ``more`` is requires_grad, hooks, then dtype and metadata if given."""
        dtype = storage.dtype
        for value in more[2:]:
            if isinstance(value, Inert):
                raise CheckpointError(f"holds a tensor of {value}, which this torch does not know")
            if isinstance(value, torch.dtype):
                dtype = value
        is_lazy = any(isinstance(value, dict) and value for value in more[2:])
        if is_lazy or str(dtype).startswith(("torch.q", "torch.bits")):
            return Inert("torch.Tensor")
        if dtype is None or storage.dtype not in (None, dtype):
            raise damaged("a tensor and its storage differ in dtype")
        _check_geometry(storage.key, offset, size, stride, storage.nbytes // dtype.itemsize)
        tensor = torch.empty(0, dtype=dtype, device="cpu")
        self._unfilled.append((tensor, storage, offset, tuple(size), tuple(stride)))
        return tensor


def storage_bytes(
    file: io.BufferedReader, mapped: mmap, start: int, storage: Storage
) -> torch.UntypedStorage:
    """Return the bytes of ``storage`` from ``start`` on: mapped, or copied if unaligned."""
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
    """Raise unless a tensor lies within its storage of ``limit`` elements."""
    if not (
        is_shape(size)
        and isinstance(stride, tuple | list)
        and len(size) == len(stride)
        # torch multiplies strides of empty tensors, too
        and all(is_count(step) and step <= MAX_EXTENT for step in (offset, *stride))
    ):
        raise damaged(f"a tensor of storage {printable(key)} has an impossible shape")
    # with strides of 0, a small file could describe a huge tensor
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if not (offset <= limit if 0 in size else last < limit and math.prod(size) <= limit):
        raise damaged(
            f"a tensor of shape {printable(tuple(size))} leaves storage {printable(key)} of"
            f" {limit} elements"
        )


class _Bounded:
    """A file for :mod:`zipfile` that limits the size of an archive's directory."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._read = file.read

    def read(self, count: int = -1) -> bytes:
        if count > _MAX_DIRECTORY:
            raise CheckpointError(f"has a directory of {count} bytes, more than {_MAX_DIRECTORY}")
        return self._read(count)


def read_zip(file: BinaryIO, mapped: mmap, progress: Progress) -> Any:
    """Return the content of a zip archive of ``torch.save``; see :func:`read_checkpoint`."""
    try:
        with zipfile.ZipFile(_Bounded(file)) as archive:
            return _read_archive(archive, file, mapped, progress)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile and its callees raise many types for bad directories
        raise damaged(printable(error)) from None


def _read_archive(
    archive: zipfile.ZipFile, file: BinaryIO, mapped: mmap, progress: Progress
) -> Any:
    entries, places = archive.infolist(), {}
    if any(re.fullmatch("[^/]*/constants.pkl", entry.filename) for entry in entries):
        raise CheckpointError(
            "is a TorchScript program, which is code; save the state_dict of the network instead"
        )
    for entry in entries:
        name, start, size = printable(entry.filename), entry.header_offset, entry.file_size
        if entry.flag_bits & 1 or entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"is not from torch.save: its member {name} is compressed")
        header = mapped[start : start + _LOCAL_HEADER] if start >= 0 else b""
        start += _LOCAL_HEADER
        start += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        if size != entry.compress_size or start + size > len(mapped) or entry.filename in places:
            raise damaged(f"its member {name} is not where it should be")
        places[entry.filename] = start, size
    if sum(size for _, size in places.values()) > len(mapped):
        raise damaged("its members overlap")
    pickles = [entry for entry in entries if re.fullmatch("[^/]*/data.pkl", entry.filename)]
    if len(pickles) != 1:
        reason = "it has no single data.pkl"
        raise CheckpointError(f"is a zip archive, but not from torch.save: {reason}")
    folder = pickles[0].filename.removesuffix("data.pkl")
    order, length = places.get(f"{folder}byteorder", (0, 0))
    if mapped[order : order + length] not in (b"", b"little"):
        raise CheckpointError("holds numbers in the byte order of another machine")
    # torch.serialization.set_crc32_options(False) omits them
    if has_checksums := any(entry.CRC for entry in entries):
        _verify(archive, pickles, lambda done, total: None)  # first: damage may look hostile
    builder, (start, size) = TensorBuilder(), places[pickles[0].filename]
    data = io.BytesIO(mapped[start : start + size])
    content = Unpickler(data, size, builder.functions(), builder.load).load()
    if has_checksums:
        _verify(archive, entries, progress)
    for storage in builder.storages.values():
        start, size = places.get(f"{folder}data/{storage.key}", (0, -1))
        if size != storage.nbytes:
            name = f"data/{printable(storage.key)}"
            raise damaged(f"its member {name} does not have {storage.nbytes} bytes")
        storage.data = storage_bytes(file, mapped, start, storage)
    builder.fill()
    return content


def _verify(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], progress: Progress) -> None:
    """Read members in chunks, to bound memory; zipfile compares their checksums."""
    total, done = sum(entry.file_size for entry in entries), 0
    for entry in entries:
        with archive.open(entry) as stream:
            while chunk := stream.read(_CHUNK):
                done += len(chunk)
                progress(done, total)


def read_pickles(file: BinaryIO, mapped: mmap, progress: Progress) -> Any:
    """Return the content of a file of torch before 1.6, or of one plain pickle."""
    size, builder = len(mapped), TensorBuilder()
    mapped.seek(0)
    content = Unpickler(mapped, size).load()
    if type(content) is not int or content != MAGIC:
        return content
    Unpickler(mapped, size).load()  # version of the format; there is only one
    Unpickler(mapped, size).load()  # facts about the writing machine; data are little-endian
    content = Unpickler(mapped, size, builder.functions(), builder.load).load()
    keys = Unpickler(mapped, size).load()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(builder.storages):
        raise damaged("its storages do not match its tensors")
    position = mapped.tell()
    for key in keys:
        storage = builder.storages[key]
        numel = int.from_bytes(mapped[position : position + 8], "little")
        start, position = position + 8, position + 8 + storage.nbytes
        if position > size or numel != storage.numel:
            raise damaged(f"storage {printable(key)} does not have {storage.numel} elements")
        storage.data = storage_bytes(file, mapped, start, storage)
        progress(position, size)
    builder.fill()
    return content
