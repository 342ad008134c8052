"""Reading checkpoint files without running any code in them."""

from __future__ import annotations

import json
import stat
import warnings
from collections.abc import Mapping
from mmap import ACCESS_COPY, MADV_DONTNEED, mmap
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import nn

from mmvssm.files import Progress

from ..messages import printable
from .archives import read_pickles, read_zip
from .errors import CheckpointError, HostileFileError, damaged
from .unpickler import Inert, kind_of

_SNIFFED = 4096
_MAX_SAFETENSORS_HEADER = 100_000_000  # of the format
_MAX_HEADER = 4 << 20  # of networks, with more than ten times what the largest have
_PAGE = (
    "is a web page, not a checkpoint: the download was answered by a page, such as one to log in or"
    " to confirm; download the file itself"
)
_TEXT = "is text, not a checkpoint; download or copy the checkpoint itself"
#: Beginnings of other files, in small letters.
_OTHERS = {
    **dict.fromkeys((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--"), _PAGE),
    **dict.fromkeys((b"{", b"["), _TEXT),
    b"version https://git-lfs": (
        "is a pointer of git-lfs, not the file itself: run `git lfs pull` where it comes from"
    ),
    b"\x1f\x8b": "is compressed by gzip: unpack it first",
    b"bzh": "is compressed by bzip2: unpack it first",
    b"\xfd7zxz\0": "is compressed by xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive: unpack it first",
    b"rar!": "is a rar archive: unpack it first",
    b"\x89hdf": "is a file of HDF5, which no project of this package's families writes",
}


class Checkpoint(dict):
    """The content of a checkpoint file.

    Attributes:
        mapped: The file, if tensors are mapped into memory.
    """

    mapped: mmap | None = None

    def release(self) -> None:
        """Let go of the memory that read parts of the file take; using them reads them again.

        Changes of mapped tensors are lost.
        """
        if self.mapped is not None:
            self.mapped.madvise(MADV_DONTNEED)


def read_checkpoint(
    path: str | Path, *, trust: bool = False, progress: Progress | None = None
) -> Checkpoint:
    """Return the content of a checkpoint file, tensors on the CPU.

    No code of the file is run: only tensors and plain values are made, all other objects (such as
    the log buffers of MMEngine's runner and the options of research code) become
    :class:`~.allowlist.Inert`, and a file that asks to run something is refused. The tensors are
    mapped into memory, not read, and changing them does not change the file; parameters become
    plain tensors, and tensors that share memory go on to.

    Args:
        path: A file of ``torch.save``, in the zip format or the one before torch 1.6, a plain
            pickle, or a file of safetensors, which gives
            ``{"state_dict": {name: tensor}, "meta": {...}}``.
        trust: Read by ``torch.load`` what a pickle holds, which runs whatever code is in it.
            Networks in the file become their state dicts.
        progress: Is called with the bytes that are done and the bytes in all, while checksums of
            a zip archive are verified or storages of an older file are found.

    Raises:
        FileNotFoundError: If there is no such file.
        HostileFileError: If the file asks to run code.
        CheckpointError: If it is no checkpoint, is damaged, or holds no dict.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint file {str(path)!r}")
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError("is a folder: name the checkpoint file in it")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            raise CheckpointError("is no regular file")
        with path.open("rb") as file:
            content, mapped = _read(file, path, trust, progress)
        _require_dict(content)
    except CheckpointError as error:
        raise type(error)(f"{str(path)!r} {error}") from None
    checkpoint = Checkpoint(content)
    checkpoint.mapped = mapped
    return checkpoint


def _read(
    file: BinaryIO, path: Path, trust: bool, progress: Progress | None
) -> tuple[Any, mmap | None]:
    """Return the content of a file, and the file as it is mapped into memory."""
    head = file.read(_SNIFFED)
    size = file.seek(0, 2)
    if not head:
        raise CheckpointError("is empty: download or copy it again")
    mapped = mmap(file.fileno(), 0, access=ACCESS_COPY)
    if _is_safetensors(head, size):
        return _read_safetensors(path, mapped), mapped
    _refuse_others(head)
    is_zip = head.startswith(b"PK")
    if trust:
        return _load_trusted(path, is_zip), None
    if is_zip:
        return read_zip(file, mapped, progress), mapped
    try:
        return read_pickles(file, mapped, progress), mapped
    except HostileFileError:
        raise
    except CheckpointError:
        if head.startswith(b"\x80"):
            raise
        # other first bytes can begin a pickle as well, but rarely do
        raise CheckpointError(
            f"is no checkpoint: it begins with {printable(head[:16].decode('latin1'))!r}; download or"
            " copy the checkpoint itself"
        ) from None


def _refuse_others(head: bytes) -> None:
    """Name what is often found in place of a checkpoint."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, message in _OTHERS.items():
        if text.startswith(start):
            raise CheckpointError(message)
    if head[257:262] == b"ustar":
        raise CheckpointError("is a tar archive: unpack it first")


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or length > _MAX_SAFETENSORS_HEADER:
        return False
    if 8 + length > size:
        raise damaged("its header ends early")
    if length > _MAX_HEADER:
        raise CheckpointError(
            f"has a header of {length} bytes, more than {_MAX_HEADER}, which no checkpoint has;"
            " check that it is the right file"
        )
    return True


def _read_safetensors(path: Path, mapped: mmap) -> dict:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta = _read_metadata(file.metadata())
    except Exception as error:  # the library has several kinds for damaged files
        raise damaged(f"as safetensors: {printable(error)}") from None
    # the library has checked the header; its own mapping could not be let go of
    start = 8 + int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8:start])
    for name, tensor in found.items():
        place = start + header[name]["data_offsets"][0]
        if tensor.numel() and place % tensor.element_size() == 0:
            data = torch.frombuffer(mapped, dtype=torch.uint8, count=tensor.nbytes, offset=place)
            found[name] = data.view(tensor.dtype).view(tensor.shape)
    return dict(state_dict=found, meta=meta)


def _read_metadata(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the text of a file; ours is one JSON, see :func:`write_checkpoint`."""
    texts = dict(metadata or {})
    try:
        meta = json.loads(texts.get("meta", ""))
    except (ValueError, RecursionError):
        return texts
    return meta if isinstance(meta, dict) else texts


def _load_trusted(path: Path, is_zip: bool) -> Any:
    warnings.warn(
        f"{str(path)!r} is read by torch.load, which runs any code in it, as you trust it",
        stacklevel=4,
    )
    try:
        content = torch.load(path, map_location="cpu", weights_only=False, mmap=is_zip)
    except Exception as error:  # whatever the code in the file raises
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise CheckpointError(f"cannot be read by torch.load: {printable(reason, 200)}") from None
    if isinstance(content, nn.Module):
        return dict(state_dict=content.state_dict())
    if isinstance(content, dict):
        return {
            key: value.state_dict() if isinstance(value, nn.Module) else value
            for key, value in content.items()
        }
    return content


def _require_dict(content: Any) -> None:
    if isinstance(content, Inert) and content.is_network:
        raise CheckpointError(
            f"holds a pickled network of {printable(content.origin)} in place of its weights: save"
            " its state_dict() where its code is"
        )
    if not isinstance(content, dict):
        raise CheckpointError(
            f"holds no dict, but {kind_of(content)}: save weights as a dict of tensors by name"
        )
