"""The two formats of ``torch.save``: zip archives, and the one before torch 1.6."""

from __future__ import annotations

import io
import re
import zipfile
from mmap import mmap
from typing import Any, BinaryIO

from mmvssm.files import Progress
from mmvssm.messages import printable

from .allowlist import CheckpointError, damaged
from .tensors import TensorBuilder, storage_bytes
from .unpickler import Unpickler

#: First value of a file of the format before torch 1.6.
MAGIC = 0x1950A86A20F9469CFC6C
_CHUNK = 4 << 20
_LOCAL_HEADER = 30  # bytes, then the name and extra fields
_MAX_DIRECTORY = 8 << 20  # bytes, of about 70,000 members


class _Bounded:
    """A file as :mod:`zipfile` reads it, which takes the directory of an archive in one piece."""

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
    except Exception as error:  # zipfile's own and those of what it calls, on absurd directories
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
            raise CheckpointError(f"is no archive of torch.save: its member {name} is compressed")
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
        raise CheckpointError("is a zip archive, but none of torch.save: it has no single data.pkl")
    folder = pickles[0].filename.removesuffix("data.pkl")
    order, length = places.get(f"{folder}byteorder", (0, 0))
    if mapped[order : order + length] not in (b"", b"little"):
        raise CheckpointError("holds numbers in the byte order of another machine")
    # torch.serialization.set_crc32_options(False) leaves them out
    if has_checksums := any(entry.CRC for entry in entries):
        _verify(archive, pickles, lambda done, total: None)  # first, as damage is not hostile
    builder, (start, size) = TensorBuilder(), places[pickles[0].filename]
    data = io.BytesIO(mapped[start : start + size])
    content = Unpickler(data, size, builder.functions(), builder.load).load()
    if has_checksums:
        _verify(archive, entries, progress)
    for storage in builder.storages.values():
        start, size = places.get(f"{folder}data/{storage.key}", (0, -1))
        if size != storage.nbytes:
            name = f"data/{printable(storage.key)}"
            raise damaged(f"its member {name} has not the {storage.nbytes} bytes that it should")
        storage.data = storage_bytes(file, mapped, start, storage)
    builder.fill()
    return content


def _verify(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], progress: Progress) -> None:
    """Read members in parts, so that memory does not grow; zipfile compares their checksums."""
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
    Unpickler(mapped, size).load()  # the version of the format, of which there was one
    Unpickler(mapped, size).load()  # about the machine that wrote it; numbers are little-endian
    content = Unpickler(mapped, size, builder.functions(), builder.load).load()
    keys = Unpickler(mapped, size).load()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(builder.storages):
        raise damaged("its storages are not those that its tensors need")
    position = mapped.tell()
    for key in keys:
        storage = builder.storages[key]
        numel = int.from_bytes(mapped[position : position + 8], "little")
        start, position = position + 8, position + 8 + storage.nbytes
        if position > size or numel != storage.numel:
            raise damaged(f"storage {printable(key)} has not its {storage.numel} elements")
        storage.data = storage_bytes(file, mapped, start, storage)
        progress(position, size)
    builder.fill()
    return content
