"""The work folder of a training: writable, and of one training at a time."""

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

#: Held by the training that writes to the folder.
LOCK = ".lock"
#: What the operating system says where nothing more can be written.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
# Locks of a process are gone when it closes a file: as many files as folders stay open.
_locks: dict[str, IO[str]] = {}


def claim_work_dir(work_dir: str) -> None:
    """Make the work folder, check that files can be written there, and keep other trainings out.

    The lock goes with the process, however it ends. Of several processes the first takes it. A
    folder that cannot be written, or that another training writes to, ends the program with one
    sentence.
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
            f"the work folder {work_dir!r} cannot be written ({error.strerror}): choose another by"
            " --work-dir"
        )
    try:
        # of the process, so that the workers that it starts do not hold it
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        lock.seek(0)
        process = lock.read(100).strip() or "?"
        lock.close()
        fail(
            f"another training writes to the work folder {work_dir!r} (process {process}): choose"
            " another by --work-dir, or wait for its end"
        )
    lock.truncate(0)
    lock.write(f"{os.getpid()} on {os.uname().nodename}\n")
    lock.flush()
    _locks.setdefault(str(path), lock)


@contextmanager
def full_disk_explained(work_dir: str) -> Iterator[None]:
    """End the program with one sentence where the work folder takes no more files."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        fail(
            f"the work folder {work_dir!r} cannot be written any more ({error.strerror}): make"
            " room, and go on with --resume"
        )
