"""The two formats of ``torch.save``: zip archives, and the one before torch 1.6."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from mmap import mmap
from typing import Any, BinaryIO, NamedTuple

from mmvssm.files import Progress

from ..messages import printable
from .errors import CheckpointError, damaged
from .tensors import TensorBuilder, storage_bytes
from .unpickler import Unpickler

#: First value of a file of the format before torch 1.6.
MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
_CHUNK = 4 << 20
_LOCAL_HEADER = 30  # bytes, then the name and extra fields
_MAX_DIRECTORY = 8 << 20  # bytes, of about 70,000 members


class Member(NamedTuple):
    """A member of an archive: its place in the file, in bytes, and its checksum."""

    name: str
    start: int
    size: int
    crc: int


def read_zip(file: BinaryIO, mapped: mmap, progress: Progress | None) -> Any:
    """Return the content of a zip archive of ``torch.save``.

    Raises:
        CheckpointError: If it is none, or is damaged.
        HostileFileError: If it asks to run something.
    """
    members = {member.name: member for member in _list_members(file, mapped)}
    pickles = [name for name in members if re.fullmatch("[^/]*/data.pkl", name)]
    if len(pickles) != 1:
        raise CheckpointError(
            "is a zip archive, but not one of torch.save, as it holds no single data.pkl;"
            " unpack it if it contains the checkpoint"
        )
    pickled, folder = members[pickles[0]], pickles[0].removesuffix("data.pkl")
    byteorder = "little"
    if order := members.get(f"{folder}byteorder"):
        byteorder = mapped[order.start : order.start + min(order.size, 10)].decode("latin1")
        if byteorder not in ("little", "big"):
            raise damaged(f"its byte order is {printable(byteorder)!r}")
    # torch.serialization.set_crc32_options(False) leaves them out
    has_checksums = any(member.crc for member in members.values())
    if has_checksums:  # a flipped bit must not look like hostile code
        _verify(file, [pickled], None)
    builder = TensorBuilder()
    data = io.BytesIO(mapped[pickled.start : pickled.start + pickled.size])
    content = Unpickler(data, pickled.size, builder.functions(), builder.load).load()
    if has_checksums:
        _verify(file, list(members.values()), progress)
    for storage in builder.storages.values():
        member = members.get(f"{folder}data/{storage.key}")
        if member is None or member.size != storage.nbytes:
            size = "is missing" if member is None else f"has {member.size} bytes"
            raise damaged(
                f"its member data/{printable(storage.key)} {size}, not {storage.nbytes} bytes"
            )
        storage.data = storage_bytes(file, mapped, member.start, storage, byteorder)
    builder.fill()
    return content


def read_pickles(file: BinaryIO, mapped: mmap, progress: Progress | None) -> Any:
    """Return the content of a file of torch before 1.6, or of one plain pickle.

    Raises:
        CheckpointError: If it is none, or is damaged.
        HostileFileError: If it asks to run something.
    """
    size, builder = len(mapped), TensorBuilder()
    mapped.seek(0)
    content = Unpickler(mapped, size).load()
    if type(content) is not int or content != MAGIC:
        return content
    version = Unpickler(mapped, size).load()
    if type(version) is not int or version != LEGACY_VERSION:
        raise damaged("or of an unknown version of torch's old format")
    Unpickler(mapped, size).load()  # about the machine that wrote it; numbers are little-endian
    content = Unpickler(mapped, size, builder.functions(), builder.load).load()
    keys = Unpickler(mapped, size).load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise damaged("its list of storages is none")
    if len(keys) != len(set(keys)) or set(keys) != set(builder.storages):
        raise damaged("its storages are not those that its tensors need")
    position = mapped.tell()
    for key in keys:
        storage = builder.storages[key]
        numel = int.from_bytes(mapped[position : position + 8], "little")
        start, position = position + 8, position + 8 + storage.nbytes
        if position > size or numel != storage.numel:
            raise damaged(f"storage {printable(key)} has not its {storage.numel} elements")
        storage.data = storage_bytes(file, mapped, start, storage, "little")
        if progress is not None:
            progress(position, size)
    builder.fill()
    return content


class _Bounded:
    """A file as :mod:`zipfile` reads it, which takes the directory of an archive in one piece."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._file = file

    def read(self, count: int = -1) -> bytes:
        if count > _MAX_DIRECTORY:
            raise CheckpointError(
                f"has a directory of {count} bytes, more than {_MAX_DIRECTORY}, which no checkpoint"
                " has; check that it is the right file"
            )
        return self._file.read(count)


def _list_members(file: BinaryIO, mapped: mmap) -> list[Member]:
    """List the members of an archive, each stored as it is, at its own place in the file."""
    try:
        with zipfile.ZipFile(_Bounded(file)) as archive:
            entries = archive.infolist()
    except CheckpointError:
        raise
    except Exception as error:  # zipfile's own and those of what it calls, on absurd directories
        raise damaged(f"its directory is no real one: {printable(error)}") from None
    if any(re.fullmatch("[^/]*/constants.pkl", entry.filename) for entry in entries):
        raise CheckpointError(
            "is a TorchScript program, which is code; save the state_dict of the network instead"
        )
    members = []
    for entry in entries:
        name, start, size = printable(entry.filename), entry.header_offset, entry.file_size
        if entry.flag_bits & 1 or entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"is no archive of torch.save, as its member {name} is compressed: unpack it if it"
                " contains the checkpoint"
            )
        header = mapped[start : start + _LOCAL_HEADER] if start >= 0 else b""
        if len(header) < _LOCAL_HEADER or header[:4] != b"PK\3\4":
            raise damaged(f"its member {name} is not where it should be")
        start += _LOCAL_HEADER
        start += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        if size != entry.compress_size or start + size > len(mapped):
            raise damaged(f"its member {name} does not fit into the file")
        members.append(Member(entry.filename, start, size, entry.CRC))
    if len({member.name for member in members}) != len(members):
        raise damaged("two of its members have the same name")
    if sum(member.size for member in members) > len(mapped):
        raise damaged("its members overlap")
    return members


def _verify(file: BinaryIO, members: list[Member], progress: Progress | None) -> None:
    """Compare the checksums of members, read in parts so that memory does not grow."""
    total, done = sum(member.size for member in members), 0
    buffer = memoryview(bytearray(min(_CHUNK, max(total, 1))))
    for member in sorted(members, key=lambda member: member.start):
        file.seek(member.start)
        crc, left = 0, member.size
        while left:
            count = file.readinto(buffer[: min(left, len(buffer))])
            if not count:
                raise damaged(f"its member {printable(member.name)} ends early")
            crc = zlib.crc32(buffer[:count], crc)
            left, done = left - count, done + count
            if progress is not None:
                progress(done, total)
        if crc != member.crc:
            raise damaged(f"the checksum of its member {printable(member.name)} is wrong")
