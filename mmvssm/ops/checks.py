"""Argument checks of the public ops. Errors name the argument, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_tensor(name: str, value: object, ndim: int | Sequence[int]) -> None:
    """Raise unless ``value`` is a dense tensor of one of the given ranks."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of {value.layout}")
    ndims = (ndim,) if isinstance(ndim, int) else tuple(ndim)
    if value.dim() not in ndims:
        wanted = " or ".join(map(str, ndims))
        raise ValueError(f"{name} must have {wanted} dimensions, got shape {tuple(value.shape)}")


def check_shape(name: str, value: Tensor, expected: Sequence[int], layout: str) -> None:
    """Raise unless ``value`` has the shape ``expected``; ``layout`` names its axes."""
    if tuple(value.shape) != tuple(expected):
        raise ValueError(
            f"{name} must have shape {layout} = {tuple(expected)}, got {tuple(value.shape)}"
        )


def check_positive(**sizes: int) -> None:
    """Raise if one of the named sizes is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_flag(name: str, value: object) -> None:
    """Raise unless an option is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_float(reference: str, first: Tensor, **others: Tensor) -> None:
    """Raise unless ``first`` is a supported float tensor and the others share dtype and device."""
    if first.dtype not in FLOAT_DTYPES:
        wanted = ", ".join(str(d).removeprefix("torch.") for d in FLOAT_DTYPES)
        raise TypeError(f"{reference} must be one of {wanted}, got {first.dtype}")
    for name, value in others.items():
        if value.dtype != first.dtype:
            raise TypeError(
                f"{name} must have the dtype of {reference}, {first.dtype}, got {value.dtype}"
            )
    check_device(reference, first, **others)


def check_device(reference: str, first: Tensor, **others: Tensor | None) -> None:
    """Raise unless all tensors are on the device of ``first``."""
    for name, value in others.items():
        if value is not None and value.device != first.device:
            raise ValueError(
                f"{name} must be on the device of {reference}, {first.device}, got {value.device}"
            )


def check_parameter(name: str, value: Tensor) -> None:
    """Raise unless a parameter has a real floating-point dtype; it is later cast to float32."""
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must be a float tensor, got {value.dtype}")


def check_out_dtype(out_dtype: torch.dtype | None, input_dtype: torch.dtype) -> torch.dtype:
    """Return the output dtype; raise for any other than the input's or float32."""
    if out_dtype is None:
        return input_dtype
    allowed = (input_dtype,) if input_dtype == torch.float64 else (input_dtype, torch.float32)
    if out_dtype not in allowed:
        wanted = " or ".join(str(d) for d in dict.fromkeys(allowed))
        raise TypeError(
            f"out_dtype must be None, {wanted} for {input_dtype} input, got {out_dtype}"
        )
    return out_dtype


def check_table(name: str, table: Tensor) -> None:
    """Raise unless ``table`` is an int32 tensor ``(K, L)`` with at least one entry."""
    check_tensor(name, table, 2)
    if table.dtype != torch.int32:
        raise TypeError(f"{name} must be an int32 table, got {table.dtype}")
    check_positive(K=table.shape[0], L=table.shape[1])


def check_range(name: str, table: Tensor, size: int) -> int:
    """Raise unless all entries of a route table lie in ``[-1, size)``; return the lowest one."""
    low, high = (int(v) for v in table.aminmax())
    if low < -1 or high >= size:
        raise ValueError(
            f"{name} must hold entries from -1 to {size - 1}, got entries from {low} to {high}"
        )
    return low
