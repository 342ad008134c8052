"""Routes: orders of visiting the pixels of a map, as int32 index tables ``(K, L)``.

An entry is the flat row-major index ``row * width + column`` of the pixel visited at that step, or
-1 for a zero token. Every builder takes ``device=`` besides its sizes. Tables are cached per size
and device and shared by all layers: never write into one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps

import torch
from torch import Tensor

from .backend import tracing


def _cached(build: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keep the tables of a builder, which may be called under any mode of torch."""

    def on_device(*sizes: int, device: torch.device | str) -> Tensor:
        for size in sizes:
            if size < 1:
                raise ValueError(f"sizes of {build.__name__} must be at least 1, got {sizes}")
        # A tensor made in inference mode could not be saved for a later backward pass.
        with torch.inference_mode(False):
            return build(*sizes).to(device)

    keep = lru_cache(maxsize=256)(on_device)

    @wraps(build)
    def table(*sizes: int, device: torch.device | str = "cpu") -> Tensor:
        # A table made while tracing is no real tensor and must not be kept.
        if tracing() or type(torch.empty(0)) is not Tensor:
            return on_device(*sizes, device=device)
        return keep(*sizes, device=device)

    return table


def _rows(height: int, width: int) -> Tensor:
    return torch.arange(height * width, dtype=torch.int32)


def _columns(height: int, width: int) -> Tensor:
    return _rows(height, width).view(height, width).t().reshape(-1)


@_cached
def cross2d(height: int, width: int) -> Tensor:
    """Rows, columns, rows reversed, columns reversed (VMamba's cross scan).

    Args:
        height: Rows of the map.
        width: Columns of the map.

    Returns:
        int32 ``(4, height * width)``.

    Raises:
        ValueError: If a size is not positive.
    """
    forward = torch.stack([_rows(height, width), _columns(height, width)])
    return torch.cat([forward, forward.flip(1)])


@_cached
def unidi(height: int, width: int) -> Tensor:
    """Rows, four times: VMamba's unidirectional ablation. See :func:`cross2d`."""
    return _rows(height, width).expand(4, -1).contiguous()


@_cached
def bidi(height: int, width: int) -> Tensor:
    """Rows, rows, rows reversed, rows reversed: the bidirectional ablation. See :func:`cross2d`."""
    rows = _rows(height, width)
    return torch.stack([rows, rows, rows.flip(0), rows.flip(0)])


@_cached
def forward_backward(length: int) -> Tensor:
    """A sequence from its start and from its end.

    Args:
        length: Positions of the sequence.

    Returns:
        int32 ``(2, length)``.

    Raises:
        ValueError: If the length is not positive.
    """
    line = torch.arange(length, dtype=torch.int32)
    return torch.stack([line, line.flip(0)])
