"""The merge of routes whose channels are gated: CPU kernels, or PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import resolve
from .checks import (
    check_device,
    check_float,
    check_parameter,
    check_positive,
    check_shape,
    check_tensor,
)
from .precision import compute_dtype, promote
from .reference import gated_sum_reference, normalized_means_reference
from .tracers import tracing


def normalized_means(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """Return the means over pixels of layer-normalised outputs of routes.

    Neither the products with ``scale`` nor the normalised outputs are stored by the CPU kernels.

    Args:
        x: Outputs ``(B, P, K, D)``; float32, float16, bfloat16 or float64.
        weight: Weight ``(D,)`` of the layer norm over the channels.
        bias: Bias ``(D,)`` of the layer norm.
        scale: Factors ``(B, P, D)`` of the outputs, shared by the routes; None for ones.
        eps: Added to the variance over the channels.

    Returns:
        ``(B, K, D)``; float32, or float64 for float64 outputs.

    Raises:
        TypeError: If an argument is not a tensor or has a wrong dtype.
        ValueError: If a shape or device is wrong, or P, K or D is zero.
    """
    x, scale = _checked(x, scale)
    channels = x.shape[3]
    for name, value in {"weight": weight, "bias": bias}.items():
        _check_parameter(name, value, x, (channels,), "(D,)")
    weight, bias = (t.to(compute_dtype(x.dtype)) for t in (weight, bias))
    if not _runs_kernels(x):
        return normalized_means_reference(x, scale, eps, weight, bias)
    means = torch.ops.mmvssm.normalized_means(x.contiguous(), scale, eps)
    return means * weight + bias


def gated_sum(x: Tensor, gates: Tensor, scale: Tensor | None = None) -> Tensor:
    """Sum the outputs of routes, weighted by a gate for each channel of a route.

    Args:
        x: Outputs ``(B, P, K, D)``; float32, float16, bfloat16 or float64.
        gates: ``(B, K, D)``.
        scale: Factors ``(B, P, D)`` of the sum; None for ones.

    Returns:
        ``(B, P, D)``; float32, or float64 for float64 outputs.

    Raises:
        TypeError: If an argument is not a tensor or has a wrong dtype.
        ValueError: If a shape or device is wrong, or P, K or D is zero.
    """
    x, scale = _checked(x, scale)
    batch, _, num_routes, channels = x.shape
    _check_parameter("gates", gates, x, (batch, num_routes, channels), "(B, K, D)")
    gates = gates.to(compute_dtype(x.dtype))
    if not _runs_kernels(x):
        return gated_sum_reference(x, gates, scale)
    return torch.ops.mmvssm.gated_sum(x.contiguous(), gates.contiguous(), scale)


def _checked(x: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Check the outputs and their factors, and cast them to the wider of their dtypes."""
    check_tensor("x", x, 4)
    check_float("x", x)
    batch, pixels, num_routes, channels = x.shape
    check_positive(P=pixels, K=num_routes, D=channels)
    if scale is None:
        return x, None
    _check_parameter("scale", scale, x, (batch, pixels, channels), "(B, P, D)")
    x, scale = promote(x, scale)
    return x, scale.contiguous()


def _check_parameter(
    name: str, value: Tensor, x: Tensor, shape: tuple[int, ...], layout: str
) -> None:
    check_tensor(name, value, len(shape))
    check_parameter(name, value)
    check_device("x", x, **{name: value})
    check_shape(name, value, shape, layout)


def _runs_kernels(x: Tensor) -> bool:
    """Return whether the CPU kernels run; compilers of graphs fuse the PyTorch definition."""
    return x.device.type == "cpu" and not tracing() and resolve(x) == "native"
