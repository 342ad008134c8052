"""NVRTC, CUDA's compiler at run time: found as torch finds it, called through ctypes."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from pathlib import Path

import torch

from .sources import headers

#: NVRTC compiles device code only, so every function of the sources becomes device code.
OPTIONS = ("--std=c++17", "--device-as-default-execution-space", "--define-macro=MMVSSM_PLAN")


class NvrtcError(RuntimeError):
    """NVRTC is missing, or rejects its input."""


def library_files(cuda: str) -> list[Path]:
    """List the candidates for NVRTC, best first: torch's wheels, then CUDA toolkits.

    Args:
        cuda: CUDA version that torch was built for, as in ``torch.version.cuda``.

    Returns:
        Existing files, then a bare name for the system's loader.
    """
    major = cuda.split(".")[0]
    number = "11.2" if major == "11" else major  # all of CUDA 11 from 11.2 on shares this name
    places = [
        Path(entry, "nvidia", folder, "lib")
        for entry in sys.path
        for folder in (f"cu{major}", "cuda_nvrtc")
    ]
    places.append(Path(torch.__file__).parent / "lib")
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if variable in os.environ:
            places.append(Path(os.environ[variable], "lib64"))
    found = [file for place in places for file in sorted(place.glob(f"libnvrtc*.so.{number}"))]
    # torch's wheels for CUDA 11 add a hash to the name.
    found = [file for file in found if re.match(r"libnvrtc(-[0-9a-f]+)?\.so", file.name)]
    return [*found, Path(f"libnvrtc.so.{number}")]


@contextmanager
def _same_locale() -> Iterator[None]:
    """Restore the thread's locale: NVRTC of CUDA 12.1 leaves it at C, where text is ASCII."""
    uselocale = ctypes.CDLL(None).uselocale
    uselocale.argtypes, uselocale.restype = [c_void_p], c_void_p
    before = uselocale(None)
    try:
        yield
    finally:
        uselocale(before)


class Compiler:
    """A loaded NVRTC library.

    Args:
        file: The library; the system's loader searches for a bare name.

    Raises:
        NvrtcError: If it does not load.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            # NVRTC opens this library by its bare name, so it must be loaded before.
            for builtins in sorted(file.parent.glob("libnvrtc-builtins*.so*")):
                if ".alt." not in builtins.name:
                    ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
            self._library = ctypes.CDLL(str(file))
        except OSError as error:
            raise NvrtcError(f"NVRTC does not load ({error})") from None
        self._library.nvrtcGetErrorString.restype = c_char_p
        major, minor, count = c_int(), c_int(), c_int()
        self._call("nvrtcVersion", byref(major), byref(minor))
        self.version = f"{major.value}.{minor.value}"
        self._call("nvrtcGetNumSupportedArchs", byref(count))
        supported = (c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", supported)
        #: Supported architectures, ascending, as 75, 80, ...
        self.architectures = sorted(supported)

    def target(self, capability: int) -> str:
        """Return the target for a device: machine code, or PTX that its driver translates.

        Args:
            capability: Compute capability, 90 for 9.0.

        Returns:
            ``'sm_90'``, or ``'compute_90'`` for a device newer than this NVRTC.

        Raises:
            NvrtcError: If the device is older than every architecture that this NVRTC supports.
        """
        known = [number for number in self.architectures if number <= capability]
        if not known:
            raise NvrtcError(
                f"NVRTC {self.version} compiles for sm_{self.architectures[0]} and newer,"
                f" and this GPU is sm_{capability}"
            )
        # Machine code runs on later devices of the same major version.
        kind = "sm" if known[-1] // 10 == capability // 10 else "compute"
        return f"{kind}_{known[-1]}"

    def compile(self, source: str, target: str, kernel: str) -> tuple[str, bytes]:
        """Compile one kernel.

        Args:
            source: Text of the program, which may include :func:`~.sources.headers`.
            target: A target of :meth:`target`.
            kernel: C++ expression that names the kernel, with its template arguments.

        Returns:
            Name of the kernel in the code, and the code: PTX for a ``compute_`` target, else
            machine code.

        Raises:
            NvrtcError: If the program does not compile; the message includes the compiler's log.
        """
        program = c_void_p()
        texts = headers()
        self._call(
            "nvrtcCreateProgram",
            byref(program),
            source.encode(),
            b"mmvssm.cu",
            len(texts),
            _strings(texts.values()),
            _strings(texts),
        )
        try:
            self._call("nvrtcAddNameExpression", program, kernel.encode())
            options = (f"--gpu-architecture={target}", *OPTIONS)
            with _same_locale():
                status = self._library.nvrtcCompileProgram(program, len(options), _strings(options))
            if status:
                log = self._read(program, "nvrtcGetProgramLog").rstrip(b"\0").decode()
                raise NvrtcError(f"NVRTC {self.version} cannot compile {kernel}:\n{log}")
            lowered = c_char_p()
            self._call("nvrtcGetLoweredName", program, kernel.encode(), byref(lowered))
            kind = "nvrtcGetCUBIN" if target.startswith("sm_") else "nvrtcGetPTX"
            return lowered.value.decode(), self._read(program, kind)
        finally:
            self._call("nvrtcDestroyProgram", byref(program))

    def _read(self, program: c_void_p, function: str) -> bytes:
        size = c_size_t()
        self._call(f"{function}Size", program, byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(function, program, buffer)
        return buffer.raw

    def _call(self, function: str, *arguments) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            words = self._library.nvrtcGetErrorString(status).decode()
            raise NvrtcError(f"{function} of {self.file}: {words}")


def _strings(texts):
    encoded = [text.encode() for text in texts]
    return (c_char_p * len(encoded))(*encoded)


@cache
def find_compiler() -> Compiler:
    """Load the NVRTC of the CUDA version that torch was built for.

    Raises:
        NvrtcError: If there is none.
    """
    if torch.version.cuda is None:
        raise NvrtcError("torch is a build without CUDA")
    return Compiler(library_files(torch.version.cuda)[0])
