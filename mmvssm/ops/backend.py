"""Which implementation runs: the compiled kernels of a device, or PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .extension import DEVICES

BACKENDS = ("auto", "cuda", "cpu", "torch")
_GRAPH = "graph"
_TRANSFORMED = "torch.func and forward-mode derivatives go through the PyTorch definition alone"

_choice = "auto"
_warned: set[str] = set()


class backend:
    """Choose the implementation of the ops, for good or for a ``with`` block.

    ``'auto'`` takes the compiled kernel of the tensors' device, and PyTorch with one warning where
    there is none; ``'cuda'`` and ``'cpu'`` insist on that kernel; ``'torch'`` is the PyTorch path.

    Args:
        name: One of ``'auto'``, ``'cuda'``, ``'cpu'``, ``'torch'``.

    Raises:
        ValueError: For another name.
        RuntimeError: If ``'cuda'`` or ``'cpu'`` is asked for and was not built.

    Example:
        >>> backend('torch')            # from here on
        >>> with backend('cpu'):        # only inside
        ...     y = selective_scan(u, delta, A, B, C)
    """

    def __init__(self, name: str) -> None:
        global _choice
        if name not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
        if name in ("cpu", "cuda") and name not in built_devices():
            raise RuntimeError(f"backend {name!r} is not built: {missing_reason(name)}")
        self.previous, self.name = _choice, name
        _choice = name

    def __enter__(self) -> str:
        return self.name

    def __exit__(self, *exc_info) -> None:
        global _choice
        _choice = self.previous


@contextmanager
def registered_ops() -> Iterator[None]:
    """Call the registered ops whatever was built: for graphs that are traced here, and not run."""
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
    """Devices for which kernels were compiled: ``('cpu',)``, ``('cpu', 'cuda')`` or ``()``."""
    return DEVICES


def missing_reason(device: str) -> str:
    """One sentence on how to get the kernels of a device."""
    if not built_devices():
        return (
            "mmvssm was installed without compiled kernels; install a C++ compiler and run"
            " 'pip install --no-build-isolation .' in its repository"
        )
    if device == "cuda":
        return (
            "mmvssm was compiled without CUDA kernels; install a CUDA toolkit with nvcc and run"
            " 'FORCE_CUDA=1 pip install --no-build-isolation .' in its repository"
        )
    return f"there is no kernel for {device} tensors"


def resolve(tensor: Tensor) -> str:
    """``'native'`` or ``'torch'`` for a call on ``tensor``; warns once per reason of a fallback."""
    device = tensor.device.type
    if _choice == "torch":
        return "torch"
    if _choice == _GRAPH:
        return "native"
    transformed = is_transformed()
    if _choice in ("cpu", "cuda"):
        if transformed:
            raise RuntimeError(
                f"backend {_choice!r} was chosen, but {_TRANSFORMED}: choose 'auto' or 'torch'"
            )
        if device not in (_choice, "meta"):
            raise ValueError(f"backend {_choice!r} was chosen, but the tensors lie on {device!r}")
        if _unsupported(tensor):
            raise TypeError("the cuda kernels take float32, float16 or bfloat16, got float64")
        return "native"
    if transformed:
        reason = _TRANSFORMED
    elif device == "meta" or (device in built_devices() and not _unsupported(tensor)):
        return "native"
    elif device in built_devices():
        reason = "the cuda kernels do not take float64"
    else:
        reason = missing_reason(device)
    if reason not in _warned and not tracing():
        _warned.add(reason)
        warnings.warn(f"mmvssm runs its slower PyTorch scan: {reason}", stacklevel=3)
    return "torch"


def _unsupported(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda" and tensor.dtype == torch.float64


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation surrounds this call."""
    if tracing():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def tracing() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` is tracing this call."""
    is_compiling = getattr(torch.compiler, "is_compiling", None)  # torch >= 2.3
    return is_compiling is not None and is_compiling()


def compiling() -> bool:
    """Whether ``torch.compile`` is tracing this call; not ``torch.export``, for other programs."""
    # torch >= 2.7; the public function is taken for true in all that torch.compile traces
    exporting = getattr(torch.compiler, "_is_exporting_flag", False)
    return tracing() and torch.compiler.is_dynamo_compiling() and not exporting


def surely_equal(size: int, other: int) -> bool:
    """Whether two sizes agree; False for sizes that a traced graph leaves open.

    Such sizes are not compared, which would bind the graph to them: it would be made anew for
    others.
    """
    if not tracing():
        return size == other
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(size == other)
