"""Atomic writing of checkpoints, with a hash of the content in the file name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mmvssm.files import Progress, existing_folder, sha256, temporary_sibling

SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
#: Digits of the SHA-256 in a name, as in the names of OpenMMLab's own files.
DIGITS = 8
_MARGIN = 2**20  # bytes for everything but tensors


def write_checkpoint(
    path: Path,
    content: Mapping[str, Any],
    *,
    force: bool = False,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Write a checkpoint in the folder of ``path``, with digits of its hash in the name.

    If writing fails, no incomplete file is left.

    Args:
        path: Path without the digits; missing folders are created. A ``.safetensors`` file stores
            the tensors of ``state_dict``, and ``meta`` as JSON in its header.
        content: Dicts of tensors and plain values.
        force: Whether to replace an existing file of the same name.
        progress: Called with the number of bytes written and hashed so far and in total.

    Returns:
        ``<stem>-<first 8 digits of the file's SHA-256><suffix>`` in the same folder.

    Raises:
        OSError: If it cannot be written, or exists and ``force`` is not set.
    """
    entries = [entry for entry in content.values() if isinstance(entry, Mapping)]
    tensors = [value for entry in entries for value in entry.values() if isinstance(value, Tensor)]
    size = sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
    room = shutil.disk_usage(existing_folder(path.parent)).free
    if room < size + _MARGIN:
        sizes = f"{size / 1e6:.0f} MB are needed, {room / 1e6:.0f} MB are free"
        raise OSError(f"{sizes} in {str(path.parent)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    progress(0, size)  # safetensors reports no progress
    with temporary_sibling(path) as part:
        if path.suffix == ".safetensors":
            _write_safetensors(part, content)
        else:
            _write_torch(part, content, size, progress)
        digest = sha256(part, lambda done, size: progress((size + done) // 2, size))
        product = path.with_name(f"{path.stem}-{digest[:DIGITS]}{path.suffix}")
        if os.path.lexists(product) and not force:
            raise FileExistsError(f"{str(product)!r} exists already: --force replaces it")
        os.replace(part, product)
    return product


class _Counted:
    """A file that reports how much has been written to it."""

    def __init__(self, file: BinaryIO, written: Callable[[int], object]) -> None:
        self._file, self._written, self.flush = file, written, file.flush

    def write(self, data: bytes) -> int:
        count = self._file.write(data)
        self._written(self._file.tell())
        return count


def _write_torch(part: Path, content: Mapping[str, Any], size: int, progress: Progress) -> None:
    own: dict[int, Tensor] = {}

    def in_own_storages(value: Any) -> Any:  # torch.save writes entire storages
        if isinstance(value, Tensor):
            return own.setdefault(id(value), _own(value))
        if isinstance(value, Mapping):
            return {key: in_own_storages(item) for key, item in value.items()}
        return value

    try:
        with open(part, "wb") as file:
            counted = _Counted(file, lambda count: progress(min(count, size) // 2, size))
            torch.save(in_own_storages(content), counted)
    except RuntimeError as error:
        # torch wraps the errors of a failed or interrupted write
        if isinstance(error.__context__, OSError | KeyboardInterrupt):
            raise error.__context__ from None
        raise


def _write_safetensors(part: Path, content: Mapping[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    taken: set[int] = set()
    for key, value in content["state_dict"].items():
        value = _own(value)
        # the format does not support tensors that share memory
        tensors[key] = value.clone() if value.data_ptr() in taken else value
        taken.add(value.data_ptr())
    try:
        save_file(tensors, part, {"meta": json.dumps(content["meta"])})
    except SafetensorError as error:
        raise OSError(str(error)) from None


def _own(tensor: Tensor) -> Tensor:
    """Return the tensor, contiguous, in a storage of its size."""
    tensor = tensor.detach().contiguous()
    storage, start = tensor.untyped_storage(), tensor.storage_offset() * tensor.element_size()
    if storage.nbytes() == tensor.nbytes:
        return tensor
    part = storage[start : start + tensor.nbytes]
    return torch.empty(0, dtype=tensor.dtype).set_(part, 0, tensor.shape, tensor.stride())
