"""Precision of the scan; no other module decides it.

Activations may be float32, float16, bfloat16 or float64. State, decay, sums and parameters are
float32, or float64 with float64 activations. Autocast neither narrows nor widens a scan: its
activations are cast to the widest of their own dtypes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision of the recurrence: float64 for float64 activations, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast tensors to the widest of their dtypes, so that autocast never narrows the inputs."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(t.to(dtype) for t in tensors)


def cast_parameters(dtype: torch.dtype, *parameters: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast A, D, step weights and biases to the compute dtype for activations of ``dtype``."""
    return tuple(None if p is None else p.to(compute_dtype(dtype)) for p in parameters)


def autocast_enabled(device_type: str) -> bool:
    """Return whether autocast is on for a device type (before torch 2.4: CPU and CUDA only)."""
    if hasattr(torch, "get_autocast_dtype"):  # torch >= 2.4
        known = device_type in ("cpu", "cuda") or torch.amp.is_autocast_available(device_type)
        return known and torch.is_autocast_enabled(device_type)
    if device_type not in ("cpu", "cuda"):
        return False
    return torch.is_autocast_cpu_enabled() if device_type == "cpu" else torch.is_autocast_enabled()


def without_autocast(device_type: str) -> AbstractContextManager:
    """Switch autocast off for a block; do nothing for devices without autocast."""
    if autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def autocast_cpu_dtype() -> torch.dtype:
    """Return the dtype that autocast uses on the CPU."""
    if hasattr(torch, "get_autocast_dtype"):  # torch >= 2.4
        return torch.get_autocast_dtype("cpu")
    return torch.get_autocast_cpu_dtype()
