"""Partition of maps into windows, and its inverse."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmvssm.ops.tracers import surely_equal


def to_windows(x: Tensor, side: int) -> Tensor:
    """Cut maps into square windows, row by row, padding with zeros at the bottom and right.

    Args:
        x: ``(B, H, W, C)``.
        side: Pixels per side of a window, which may be larger than the map.

    Returns:
        ``(B * ceil(H / side) * ceil(W / side), side, side, C)``; windows of a map are adjacent.
    """
    batch, height, width, channels = x.shape
    rows, columns = _windows_along(height, side), _windows_along(width, side)
    if not (surely_equal(height, rows * side) and surely_equal(width, columns * side)):
        x = F.pad(x, (0, 0, 0, columns * side - width, 0, rows * side - height))
    x = x.reshape(batch, rows, side, columns, side, channels)
    return x.transpose(2, 3).flatten(0, 2)


def from_windows(windows: Tensor, size: tuple[int, int]) -> Tensor:
    """Reassemble the windows of :func:`to_windows` and remove the padding.

    Args:
        windows: ``(B * number of windows per map, side, side, C)``.
        size: Height and width of the maps.

    Returns:
        ``(B, H, W, C)``.
    """
    (height, width), side = size, windows.shape[1]
    rows, columns = _windows_along(height, side), _windows_along(width, side)
    x = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)[:, :height, :width]


def _windows_along(length: int, side: int) -> int:
    """Round ``length / side`` up, without negative quotients, which ONNX rounds towards zero."""
    return (length + side - 1) // side
