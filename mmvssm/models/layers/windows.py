"""Windows of maps, each of which becomes a map of its own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmvssm.ops.tracers import surely_equal


def to_windows(x: Tensor, side: int) -> Tensor:
    """Cut maps into square windows, row by row; zeros fill up the last row and column of them.

    Args:
        x: ``(B, H, W, C)``.
        side: Pixels per side of a window, which may be larger than the map.

    Returns:
        ``(B * ceil(H / side) * ceil(W / side), side, side, C)``, the windows of a map together.
    """
    batch, height, width, channels = x.shape
    rows, columns = _windows_along(height, side), _windows_along(width, side)
    if not (surely_equal(height, rows * side) and surely_equal(width, columns * side)):
        x = F.pad(x, (0, 0, 0, columns * side - width, 0, rows * side - height))
    x = x.reshape(batch, rows, side, columns, side, channels)
    return x.transpose(2, 3).flatten(0, 2)


def from_windows(windows: Tensor, size: tuple[int, int]) -> Tensor:
    """Put the windows of :func:`to_windows` together again, without what was filled up.

    Args:
        windows: ``(B * windows of a map, side, side, C)``.
        size: Height and width of the maps.

    Returns:
        ``(B, H, W, C)``.
    """
    (height, width), side = size, windows.shape[1]
    rows, columns = _windows_along(height, side), _windows_along(width, side)
    x = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)[:, :height, :width]


def _windows_along(length: int, side: int) -> int:
    """Round ``length / side`` up; never by a negative quotient, which ONNX rounds towards zero."""
    return (length + side - 1) // side
