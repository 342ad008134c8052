"""The CUDA kernels without a build: NVRTC compiles each kernel when it is first needed.

NVRTC ships with every CUDA build of torch, and the driver is on every GPU machine. No CUDA toolkit,
C++ compiler or compiled extension is needed.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch

from .compiler import NvrtcError, find_compiler
from .device import Device
from .driver import CLOCK_KHZ, Driver, DriverError
from .programs import folder
from .scans import IMPLEMENTATIONS

__all__ = ["CLOCK_KHZ", "Driver", "describe", "find_device", "missing_reason", "register"]

_registered: list[torch.library.Library] = []


@cache
def find_device(index: int) -> Device:
    """Return a GPU, ready to run scans.

    Args:
        index: Index of the GPU in torch.

    Raises:
        RuntimeError: If NVRTC or the driver is missing, or NVRTC is too new for the GPU.
    """
    return Device(index, find_compiler(), Driver())


@cache
def missing_reason(index: int) -> str:
    """Return why NVRTC cannot serve a GPU; empty if it can."""
    try:
        find_device(index)
    except (NvrtcError, DriverError, FileNotFoundError) as error:
        return str(error)
    return ""


def describe() -> str:
    """Describe the NVRTC found and the folder in which kernels are kept."""
    try:
        compiler = find_compiler()
    except NvrtcError as error:
        return f"none: {error}"
    architectures = compiler.architectures
    return (
        f"{compiler.version} for sm_{architectures[0]} to sm_{architectures[-1]}"
        f" ({compiler.file}); kernels are kept in {folder()}"
    )


def register(serves, otherwise: dict) -> None:
    """Register the implementations of the ops for CUDA tensors.

    Args:
        serves: Function that says whether NVRTC's kernels currently run on a ``torch.device``.
        otherwise: Functions to call where they do not, by name of the op; empty if no kernels were
            compiled.
    """
    if _registered:
        return
    library = torch.library.Library("mmvssm", "IMPL")
    with warnings.catch_warnings():
        # The compiled extension has registered its own kernels; these wrap them.
        warnings.filterwarnings("ignore", message=".*[Oo]verriding a previously registered kernel")
        for name, run in IMPLEMENTATIONS.items():
            implementation = _implementation(run, serves, otherwise.get(name))
            library.impl(name, implementation, "CUDA")
    _registered.append(library)


def _implementation(run, serves, otherwise):
    def implementation(*args):
        device = args[0].device
        if otherwise is not None and not serves(device):
            return otherwise(*args)
        return run(find_device(device.index or 0), *args)

    return implementation
