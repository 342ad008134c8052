"""Cache of compiled kernels on disk, shared by all processes."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

from filelock import FileLock

from mmvssm.files import atomic_write, home

from .compiler import OPTIONS, Compiler
from .sources import headers

_told: set[Path] = set()


def folder() -> Path:
    """Return the folder of compiled kernels, below the folder that ``MMVSSM_HOME`` names."""
    return home() / "kernels"


def compiled(compiler: Compiler, source: str, target: str, kernel: str) -> tuple[str, bytes]:
    """Return the result of :meth:`Compiler.compile` from the cache, compiling if it is missing.

    The name of a file in :func:`folder` is a hash of everything that its content depends on. If
    several processes need the same kernel, one compiles it and the others wait.

    Raises:
        NvrtcError: If NVRTC rejects the program.
        OSError: If the folder cannot be written.
    """
    digest = hashlib.sha256()
    for part in (compiler.version, target, *OPTIONS, kernel, source, *_parts()):
        digest.update(f"{len(part)}:{part}".encode())
    title = "-".join(re.findall(r"\w+", kernel.replace("mmvssm::cuda::", "")))[:80]
    file = folder() / f"{title}-{target}-{digest.hexdigest()[:16]}.bin"
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_suffix(".lock")):
                if not file.is_file():
                    _tell(compiler, target, file.parent)
                    name, code = compiler.compile(source, target, kernel)
                    atomic_write(file, lambda part: part.write_bytes(name.encode() + b"\n" + code))
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write compiled kernels to {str(file.parent)!r} ({error.strerror}); set"
                " MMVSSM_HOME to another folder",
            ) from None
    entry, _, code = file.read_bytes().partition(b"\n")
    return entry.decode(), code


def _parts():
    for name, text in sorted(headers().items()):
        yield from (name, text)


def _tell(compiler: Compiler, target: str, place: Path) -> None:
    """Print once per process why the first call takes seconds."""
    if place not in _told:
        _told.add(place)
        print(
            f"mmvssm: NVRTC {compiler.version} compiles CUDA kernels for {target} when they are"
            f" first used, about a second each; they are kept in {place}",
            file=sys.stderr,
            flush=True,
        )
