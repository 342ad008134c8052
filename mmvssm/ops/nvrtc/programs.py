"""Compiled kernels, kept on disk for the processes to come."""

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
    """The folder of compiled kernels, below what ``MMVSSM_HOME`` names."""
    return home() / "kernels"


def compiled(compiler: Compiler, source: str, target: str, kernel: str) -> tuple[str, bytes]:
    """As :meth:`Compiler.compile`, which runs only for what was never compiled here.

    A file of :func:`folder` is named by all that its content depends on. Of several processes one
    compiles, the others wait for it.

    Raises:
        NvrtcError: If NVRTC refuses the program.
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
                f"compiled kernels cannot be kept in {str(file.parent)!r} ({error.strerror}); let"
                " MMVSSM_HOME name another folder",
            ) from None
    entry, _, code = file.read_bytes().partition(b"\n")
    return entry.decode(), code


def _parts():
    for name, text in sorted(headers().items()):
        yield from (name, text)


def _tell(compiler: Compiler, target: str, place: Path) -> None:
    """Say once a process why the first call takes seconds."""
    if place not in _told:
        _told.add(place)
        print(
            f"mmvssm: NVRTC {compiler.version} compiles the CUDA kernels that are used, for"
            f" {target}, about a second each, once: they are kept in {place}",
            file=sys.stderr,
            flush=True,
        )
