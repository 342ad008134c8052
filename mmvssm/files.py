"""Files: written so that an interrupted run loses nothing that existed, and their hashes."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: Called with the bytes that are done and those there are in all.
Progress = Callable[[int, int], object]
_CHUNK = 2**22


def home() -> Path:
    """Return the folder of what is kept: ``MMVSSM_HOME``, else ``mmvssm`` in torch.hub's folder."""
    named = os.environ.get("MMVSSM_HOME")
    if named:
        return Path(named).expanduser().absolute()
    import torch  # not needed by those who only write a file

    return Path(torch.hub.get_dir(), "mmvssm")


@contextmanager
def temporary_sibling(path: str | Path) -> Iterator[Path]:
    """Name a temporary file in the folder of ``path``, with the same suffix.

    What stands under this name in the end is removed: rename it to keep it.
    """
    path = Path(path)
    # a name that nobody can have put a link under
    part = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.part{path.suffix}")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, and then rename it to ``path``.

    Args:
        path: The file to be, in a folder that exists.
        write: Is called with the path of the temporary file, which has the same suffix.

    Raises:
        OSError: If a file cannot be written; what was at ``path`` stays.
    """
    with temporary_sibling(path) as part:
        write(part)
        os.replace(part, path)


def existing_folder(folder: Path) -> Path:
    """Return the folder, or the nearest around it that exists."""
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
