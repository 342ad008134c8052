"""Reading of checkpoint files without running any code in them."""

from __future__ import annotations

import json
import warnings
from mmap import ACCESS_COPY, MADV_DONTNEED, mmap
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import nn

from mmvssm.files import Progress
from mmvssm.messages import printable

from .archives import read_pickles, read_zip
from .unpickler import CheckpointError, HostileFileError, Inert, damaged, kind_of

__all__ = ["Checkpoint", "CheckpointError", "HostileFileError", "Inert", "read_checkpoint"]

_SNIFFED = 4096
_MAX_SAFETENSORS_HEADER = 100_000_000  # limit of the format
_MAX_HEADER = 4 << 20  # more than ten times that of the largest networks
_PAGE = "is a web page, not a checkpoint: download the file itself, after logging in if necessary"
#: First bytes of files of other kinds, in lower case.
_OTHERS = {
    **dict.fromkeys((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--"), _PAGE),
    **dict.fromkeys((b"{", b"["), "is text, not a checkpoint: download the checkpoint itself"),
    b"version https://git-lfs": "is a pointer of git-lfs: run `git lfs pull` where it comes from",
    b"\x1f\x8b": "is compressed by gzip: unpack it first",
    b"bzh": "is compressed by bzip2: unpack it first",
}


class Checkpoint(dict):
    """The content of a checkpoint file; ``mapped`` is its memory map, if it has one."""

    mapped: mmap | None = None

    def release(self) -> None:
        """Release the memory of mapped parts that have been read; changes to them are lost."""
        if self.mapped is not None:
            self.mapped.madvise(MADV_DONTNEED)


def read_checkpoint(
    path: str | Path, *, trust: bool = False, progress: Progress = lambda done, total: None
) -> Checkpoint:
    """Return the content of a checkpoint file, tensors on the CPU.

    No code of the file is run. Only tensors and plain values are created; all other objects (such
    as logs and options) become :class:`~.unpickler.Inert`, and a file that would run code is
    rejected. Tensors are memory-mapped, not read; changing them does not change the file.

    Args:
        path: A file of ``torch.save`` (in the zip format or the one before torch 1.6), a plain
            pickle, or a safetensors file, which yields ``{"state_dict": ..., "meta": ...}``.
        trust: Read pickles with ``torch.load``, which runs whatever code is in them. Networks in
            the file are replaced by their state dicts.
        progress: Called with the number of bytes read so far and in total.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is not a checkpoint, or is damaged.
        HostileFileError: If it would run code when loaded.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint file {str(path)!r}")
    try:
        if path.is_dir():
            raise CheckpointError("is a folder: name the checkpoint file in it")
        if not path.is_file():  # opening a pipe would block
            raise CheckpointError("is not a regular file")
        with path.open("rb") as file:
            content, mapped = _read(file, path, trust, progress)
        if not isinstance(content, dict):
            kind = kind_of(content)
            raise CheckpointError(f"holds {kind}, not a dict: save the state_dict() of a network")
    except CheckpointError as error:
        raise type(error)(f"{str(path)!r} {error}") from None
    checkpoint = Checkpoint(content)
    checkpoint.mapped = mapped
    return checkpoint


def _read(file: BinaryIO, path: Path, trust: bool, progress: Progress) -> tuple[Any, mmap | None]:
    """Return the content of a file, and its memory map if there is one."""
    head = file.read(_SNIFFED)
    if not head:
        raise CheckpointError("is empty: download or copy it again")
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header <= _MAX_SAFETENSORS_HEADER:
        if header > _MAX_HEADER:
            raise CheckpointError(f"has a header of {header} bytes, more than {_MAX_HEADER}")
        return _read_safetensors(path), None
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, message in _OTHERS.items():
        if text.startswith(start):
            raise CheckpointError(message)
    if head[257:262] == b"ustar":
        raise CheckpointError("is a tar archive: unpack it first")
    if trust:
        return _load_trusted(path, head.startswith(b"PK")), None
    mapped = mmap(file.fileno(), 0, access=ACCESS_COPY)
    if head.startswith(b"PK"):
        return read_zip(file, mapped, progress), mapped
    try:
        return read_pickles(file, mapped, progress), mapped
    except HostileFileError:
        raise
    except CheckpointError:
        if head.startswith(b"\x80"):
            raise
        # other first bytes can begin a pickle as well, but rarely do
        start = printable(head[:16].decode("latin1"))
        raise CheckpointError(f"is not a checkpoint: it begins with {start!r}") from None


def _read_safetensors(path: Path) -> dict:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta: dict[str, Any] = dict(file.metadata() or {})
    except Exception as error:  # the library raises several types for damaged files
        raise damaged(f"as safetensors: {printable(error)}") from None
    try:
        ours = json.loads(meta.get("meta", ""))  # see write_checkpoint
    except (ValueError, RecursionError):
        ours = None
    return dict(state_dict=found, meta=ours if isinstance(ours, dict) else meta)


def _load_trusted(path: Path, is_zip: bool) -> Any:
    warnings.warn(
        f"{str(path)!r} is trusted and read with torch.load, which runs any code in it",
        stacklevel=4,
    )
    try:
        # a string, because torch 2.1 cannot map a file given as a Path
        content = torch.load(str(path), map_location="cpu", weights_only=False, mmap=is_zip)
    except Exception as error:  # the code in the file may raise anything
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise CheckpointError(f"cannot be read by torch.load: {printable(reason, 200)}") from None
    content = dict(state_dict=content) if isinstance(content, nn.Module) else content
    if not isinstance(content, dict):
        return content
    return {k: v.state_dict() if isinstance(v, nn.Module) else v for k, v in content.items()}
