"""Atomic writing of files, and their hashes."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: Function called with the number of bytes done and in total.
Progress = Callable[[int, int], object]
_CHUNK = 2**22


def home() -> Path:
    """Return the cache folder: ``MMVSSM_HOME``, else ``mmvssm`` in torch.hub's folder."""
    named = os.environ.get("MMVSSM_HOME")
    if named:
        return Path(named).expanduser().absolute()
    import torch  # not needed to write a file

    return Path(torch.hub.get_dir(), "mmvssm")


@contextmanager
def temporary_sibling(path: str | Path) -> Iterator[Path]:
    """Yield the path of a temporary file in the folder of ``path``, with the same suffix.

    The file is removed at the end; rename it to keep it.
    """
    path = Path(path)
    # a random name, under which nobody can have placed a link
    part = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.part{path.suffix}")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, then rename it to ``path``.

    Args:
        path: The file, in an existing folder.
        write: Function called with the path of the temporary file, which has the same suffix.

    Raises:
        OSError: If the file cannot be written; an existing file at ``path`` is then kept.
    """
    with temporary_sibling(path) as part:
        write(part)
        os.replace(part, path)


def existing_folder(folder: Path) -> Path:
    """Return the folder if it exists, else its nearest existing parent."""
    return next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))


def sha256(path: Path, progress: Progress = lambda done, total: None) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(done, size)
    return digest.hexdigest()
