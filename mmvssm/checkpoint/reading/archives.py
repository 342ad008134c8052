"""The two formats of ``torch.save``: zip archives, and the one before torch 1.6."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from mmap import mmap
from typing import Any, BinaryIO

from mmvssm.files import Progress

from ..messages import printable
from .errors import CheckpointError
from .operations import Window
from .pickles import Interpreter
from .tensors import TensorBuilder, storage_bytes

#: What a file of the format before torch 1.6 begins with.
MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
_CHUNK = 4 << 20
_LOCAL_HEADER = 30  # bytes, then the name and extra fields
_MAX_DIRECTORY = 8 << 20  # bytes, of about 70,000 members


@dataclass(frozen=True)
class Member:
    """A member of an archive: its place in the file, in bytes, and its checksum."""

    name: str
    start: int
    size: int
    crc: int


def read_zip(file: BinaryIO, mapped: mmap, progress: Progress | None) -> Any:
    """The content of a zip archive of ``torch.save``.

    Raises:
        CheckpointError: If it is none, or is damaged.
        HostileFileError: If it asks to run something.
    """
    members = {member.name: member for member in _list_members(file, mapped)}
    pickle = _find_pickle(members)
    folder = pickle.name.removesuffix("data.pkl")
    byteorder = "little"
    if f"{folder}byteorder" in members:
        member = members[f"{folder}byteorder"]
        byteorder = mapped[member.start : member.start + min(member.size, 10)].decode("latin1")
        if byteorder not in ("little", "big"):
            raise CheckpointError(
                f"is damaged: {printable(member.name)} is {printable(byteorder)!r}"
            )
    # torch.serialization.set_crc32_options(False) leaves them out
    has_checksums = any(member.crc for member in members.values())
    if has_checksums:  # a flipped bit must not look like hostile code
        _verify(file, [pickle], None)
    builder = TensorBuilder()
    window = Window(mapped, pickle.start, pickle.start + pickle.size)
    content = Interpreter(builder.rebuilders(), builder.load).run(window)
    if has_checksums:
        _verify(file, list(members.values()), progress)
    for storage in builder.storages.values():
        member = members.get(f"{folder}data/{storage.key}")
        if member is None:
            raise CheckpointError(f"is damaged: it lacks its member data/{printable(storage.key)}")
        if member.size != storage.nbytes:
            raise CheckpointError(
                f"is damaged: its member {printable(member.name)} has {member.size} bytes in place of"
                f" {storage.nbytes}"
            )
        storage.data = storage_bytes(file, mapped, member.start, storage, byteorder)
    builder.fill()
    return content


def read_pickles(file: BinaryIO, mapped: mmap, progress: Progress | None) -> Any:
    """The content of a file of torch before 1.6, or of one plain pickle.

    Raises:
        CheckpointError: If it is none, or is damaged.
        HostileFileError: If it asks to run something.
    """
    window = Window(mapped, 0, len(mapped))
    content = Interpreter().run(window)
    if type(content) is not int or content != MAGIC:
        return content
    version = Interpreter().run(window)
    if type(version) is not int or version != LEGACY_VERSION:
        raise CheckpointError("is damaged, or of an unknown version of torch's old format")
    Interpreter().run(window)  # about the machine that wrote it; the numbers are little-endian
    builder = TensorBuilder()
    content = Interpreter(builder.rebuilders(), builder.load).run(window)
    keys = Interpreter().run(window)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError("is damaged: its list of storages is none")
    if len(keys) != len(set(keys)) or set(keys) != set(builder.storages):
        raise CheckpointError("is damaged: its storages are not those that its tensors need")
    position = window.tell()
    for key in keys:
        storage = builder.storages[key]
        numel = int.from_bytes(mapped[position : position + 8], "little")
        start, position = position + 8, position + 8 + storage.nbytes
        if position > len(mapped):
            raise CheckpointError("is cut off: download or copy it again")
        if numel != storage.numel:
            raise CheckpointError(
                f"is damaged: storage {printable(key)} has {numel} elements in place of {storage.numel}"
            )
        storage.data = storage_bytes(file, mapped, start, storage, "little")
        if progress is not None:
            progress(position, len(mapped))
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
    """The members of an archive, each stored as it is, at its own place in the file."""
    try:
        with zipfile.ZipFile(_Bounded(file)) as archive:
            entries, names = archive.infolist(), archive.namelist()
    except zipfile.BadZipFile:
        raise CheckpointError("is cut off or damaged: download or copy it again") from None
    except CheckpointError:
        raise
    except Exception as error:  # zipfile's own and those of what it calls, on absurd directories
        raise CheckpointError(f"is damaged: its directory is no real one ({error!r})") from None
    if any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            "is a TorchScript program, which is code; save the state_dict of the network instead"
        )
    members = []
    for entry in entries:
        name = printable(entry.filename)
        if entry.flag_bits & 1 or entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"is no archive of torch.save, as its member {name} is compressed: unpack it if it"
                " contains the checkpoint"
            )
        start = entry.header_offset
        header = mapped[start : start + _LOCAL_HEADER] if start >= 0 else b""
        if len(header) < _LOCAL_HEADER or header[:4] != b"PK\3\4":
            raise CheckpointError(
                f"is damaged: its member {name} is not where it should be; download or copy it"
                " again"
            )
        start += _LOCAL_HEADER
        start += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        size = entry.file_size
        if size != entry.compress_size or start + size > len(mapped):
            raise CheckpointError(f"is damaged: its member {name} does not fit into the file")
        members.append(Member(entry.filename, start, size, entry.CRC))
    if len({member.name for member in members}) != len(members):
        raise CheckpointError("is damaged: two of its members have the same name")
    if sum(member.size for member in members) > len(mapped):
        raise CheckpointError("is damaged: its members lie upon each other")
    return members


def _find_pickle(members: dict[str, Member]) -> Member:
    pickles = [
        member
        for name, member in members.items()
        if name.count("/") == 1 and name.endswith("/data.pkl")
    ]
    if len(pickles) != 1:
        raise CheckpointError(
            "is a zip archive, but not one of torch.save, as it holds no single data.pkl;"
            " unpack it if it contains the checkpoint"
        )
    return pickles[0]


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
                raise CheckpointError(f"is cut off within its member {printable(member.name)}")
            crc = zlib.crc32(buffer[:count], crc)
            left -= count
            done += count
            if progress is not None:
                progress(done, total)
        if crc != member.crc:
            raise CheckpointError(
                f"is damaged: the checksum of its member {printable(member.name)} is wrong; download"
                " or copy it again"
            )
