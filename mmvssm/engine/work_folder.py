"""The work folder of a training run: check that it is writable, and lock it."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .cli import fail

#: File locked by the training run that writes to the folder.
LOCK = ".lock"
#: Errors of the operating system for a full or broken disk.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
# A process loses its lock when it closes the file, so the files stay open.
_locks: dict[str, IO[str]] = {}


def claim_work_dir(work_dir: str) -> None:
    """Create the work folder, check that it is writable, and lock it against other training runs.

    The lock is released when the process ends for any reason. In distributed training, only the
    first process takes it. If the folder is not writable, or another run writes to it, the program
    ends with one sentence.
    """
    if next((int(os.environ[name]) for name in _RANKS if name in os.environ), 0):
        return
    path = Path(work_dir).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"\0" * 4096)
        lock = (path / LOCK).open("a+")
    except OSError as error:
        fail(
            f"the work folder {work_dir!r} cannot be written ({error.strerror}): choose another"
            " with --work-dir"
        )
    try:
        # a lock of this process, which its workers do not inherit
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        lock.seek(0)
        process = lock.read(100).strip() or "?"
        lock.close()
        fail(
            f"another training writes to the work folder {work_dir!r} (process {process}): choose"
            " another with --work-dir, or wait until it ends"
        )
    lock.truncate(0)
    lock.write(f"{os.getpid()} on {os.uname().nodename}\n")
    lock.flush()
    _locks.setdefault(str(path), lock)


@contextmanager
def full_disk_explained(work_dir: str) -> Iterator[None]:
    """End the program with one sentence if the disk of the work folder is full or fails."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        fail(
            f"the work folder {work_dir!r} cannot be written any more ({error.strerror}): free disk"
            " space, and continue with --resume"
        )
