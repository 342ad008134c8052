"""Choice of the implementation: kernels for the tensors' device, or PyTorch."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from . import nvrtc
from .extension import DEVICES, EXTENSION
from .tracers import is_transformed, tracing

BACKENDS = ("auto", "cuda", "nvrtc", "cpu", "torch")
_GRAPH = "graph"
_TRANSFORMED = "only the PyTorch scan supports torch.func and forward-mode derivatives"

_choice = "auto"
_warned: set[str] = set()


class backend:
    """Choose the implementation of the ops, for the rest of the process or for a ``with`` block.

    ``'auto'`` takes the compiled kernel of the tensors' device. On a GPU for which none was
    compiled, it takes the same kernel, compiled by NVRTC on first use. If neither is available, it
    runs PyTorch and warns once. ``'cuda'`` and ``'cpu'`` require the compiled kernel, ``'nvrtc'``
    the one that NVRTC compiles, and ``'torch'`` always runs PyTorch.

    Args:
        name: One of ``'auto'``, ``'cuda'``, ``'nvrtc'``, ``'cpu'``, ``'torch'``.

    Raises:
        ValueError: For another name.
        RuntimeError: If the chosen kernels are not available.

    Example:
        >>> backend('torch')            # from here on
        >>> with backend('cpu'):        # only inside the block
        ...     y = selective_scan(u, delta, A, B, C)
    """

    def __init__(self, name: str) -> None:
        global _choice
        if name not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
        if name in ("cpu", "cuda") and name not in built_devices():
            raise RuntimeError(f"backend {name!r} is not built: {missing_reason(name)}")
        if name == "nvrtc":
            reason = _nvrtc_missing(0)
            if reason:
                raise RuntimeError(f"backend 'nvrtc' cannot run: {reason}")
            _register_nvrtc()
        self.previous, self.name = _choice, name
        _choice = name

    def __enter__(self) -> str:
        return self.name

    def __exit__(self, *exc_info) -> None:
        global _choice
        _choice = self.previous


@contextmanager
def registered_ops() -> Iterator[None]:
    """Call the registered ops whatever was built, for graphs that are traced but not run here."""
    global _choice
    previous, _choice = _choice, _GRAPH
    try:
        yield
    finally:
        _choice = previous


def current_backend() -> str:
    """Return the name last given to :class:`backend`."""
    return _choice


def built_devices() -> tuple[str, ...]:
    """Return the devices with compiled kernels: ``('cpu',)``, ``('cpu', 'cuda')`` or ``()``."""
    return DEVICES


def missing_reason(device: str) -> str:
    """Explain in one sentence how to get the kernels of a device."""
    if not built_devices():
        return (
            "mmvssm was installed without compiled kernels; install a C++ compiler and run"
            " 'pip install --no-build-isolation .' in its repository"
        )
    if device == "cuda":
        return (
            f"mmvssm was compiled without CUDA kernels ({EXTENSION.build_note()}); install the CUDA"
            " toolkit of torch's version and run 'FORCE_CUDA=1 pip install --no-build-isolation .'"
            " in its repository"
        )
    return f"there is no kernel for {device} tensors"


def gpu_kernels(index: int) -> tuple[str, str]:
    """Return the kernels that ``'auto'`` takes on a GPU.

    Args:
        index: Index of the GPU in torch.

    Returns:
        ``'cuda'``, ``'nvrtc'`` or ``'torch'``, and the reason why the preferred ones cannot run.
    """
    reason = compiled_missing(index)
    if not reason:
        return "cuda", ""
    other_reason = _nvrtc_missing(index)
    if other_reason:
        return "torch", f"{reason}; and NVRTC cannot compile them now: {other_reason}"
    return "nvrtc", reason


@cache
def compiled_missing(index: int) -> str:
    """Return why the compiled CUDA kernels cannot run on a GPU; empty if they can."""
    if "cuda" not in built_devices():
        return missing_reason("cuda")
    capability = torch.cuda.get_device_capability(index)
    built = EXTENSION.cuda_architectures()
    if covers(built, capability):
        return ""
    wanted = "{}.{}".format(*capability)
    return (
        f"mmvssm's CUDA kernels were compiled for {built}, and this GPU is {wanted}; build them"
        f" with TORCH_CUDA_ARCH_LIST={wanted}"
    )


def covers(architectures: str, capability: tuple[int, int]) -> bool:
    """Return whether code built for ``'8.0 9.0+PTX'`` runs on a GPU of a compute capability."""
    for major, minor, ptx in re.findall(r"(\d+)\.(\d+)[af]?(\+PTX)?", architectures):
        built = (int(major), int(minor))
        # Machine code runs on later devices of its major version, PTX on all later ones.
        if built <= capability and (ptx or built[0] == capability[0]):
            return True
    return False


@cache
def _nvrtc_missing(index: int) -> str:
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    return nvrtc.missing_reason(index)


def _serves_nvrtc(device: torch.device) -> bool:
    """Return whether a call of the registered ops on a GPU runs NVRTC's kernels."""
    return _choice == "nvrtc" or (
        _choice != "cuda" and gpu_kernels(device.index or 0)[0] == "nvrtc"
    )


def _register_nvrtc() -> None:
    compiled = {}
    if "cuda" in built_devices():
        compiled = {
            "selective_scan": EXTENSION.selective_scan_forward,
            "selective_scan_backward": EXTENSION.selective_scan_backward,
            "selective_scan_2d": EXTENSION.selective_scan_2d_forward,
            "selective_scan_2d_backward": EXTENSION.selective_scan_2d_backward,
        }
    nvrtc.register(_serves_nvrtc, compiled)


def resolve(tensor: Tensor) -> str:
    """Return ``'native'`` or ``'torch'`` for a call on ``tensor``; warn once per fallback cause."""
    device = tensor.device.type
    on_gpu = device == "cuda"
    if _choice == "torch":
        return "torch"
    if _choice == _GRAPH:
        return "native"
    transformed = is_transformed()
    if _choice in ("cpu", "cuda", "nvrtc"):
        if transformed:
            raise RuntimeError(
                f"backend {_choice!r} was chosen, but {_TRANSFORMED}: choose 'auto' or 'torch'"
            )
        wanted = "cpu" if _choice == "cpu" else "cuda"
        if device not in (wanted, "meta"):
            raise ValueError(f"backend {_choice!r} was chosen, but the tensors are on {device!r}")
        if on_gpu and tensor.dtype == torch.float64:
            raise TypeError("the cuda kernels take float32, float16 or bfloat16, got float64")
        return "native"
    if transformed:
        reason = _TRANSFORMED
    elif device == "meta":
        return "native"
    elif on_gpu and tensor.dtype == torch.float64:
        reason = "the cuda kernels do not take float64"
    elif on_gpu:
        kernels, reason = _gpu_kernels_when_traced(tensor.device.index or 0)
        if kernels != "torch":
            return "native"
    elif device in built_devices():
        return "native"
    else:
        reason = missing_reason(device)
    if reason not in _warned and not tracing():
        _warned.add(reason)
        warnings.warn(f"mmvssm runs its slower PyTorch scan: {reason}", stacklevel=3)
    return "torch"


def _gpu_kernels_for_call(index: int) -> tuple[str, str]:
    """Return :func:`gpu_kernels`, and register NVRTC's kernels if they are the choice."""
    kernels = gpu_kernels(index)
    if kernels[0] == "nvrtc":
        _register_nvrtc()
    return kernels


if "cuda" not in built_devices():  # also serves direct callers of the registered ops
    _register_nvrtc()

# torch.compile asks once and treats the answer as a constant.
_gpu_kernels_when_traced = torch.compiler.assume_constant_result(_gpu_kernels_for_call)
