"""Sequences of patch tokens: class tokens, output formats and rotary embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvssm.ops.precision import compute_dtype
from mmvssm.ops.tracers import surely_equal

#: Number of class tokens by the name of their position.
CLASS_TOKENS = {"none": 0, "head": 1, "middle": 1, "double": 2}
#: Output formats of a plain backbone; see :func:`format_tokens`.
OUT_TYPES = ("cls_token", "featmap", "avg_featmap", "last_token", "raw")


def cls_positions(place: str, num_patches: int) -> tuple[int, ...]:
    """Return the indices of the class tokens in a sequence with ``num_patches`` patch tokens.

    Args:
        place: ``'none'``, ``'head'`` (before all patches), ``'middle'`` (after half of them,
            rounded down) or ``'double'`` (one before and one after all patches).
        num_patches: Number of patch tokens M.

    Returns:
        Ascending indices into the ``M + T`` tokens.
    """
    places = {
        "none": (),
        "head": (0,),
        "middle": (num_patches // 2,),
        "double": (0, num_patches + 1),
    }
    return places[place]


def insert_tokens(x: Tensor, tokens: Tensor, positions: Sequence[int]) -> Tensor:
    """Insert tokens at their positions.

    Args:
        x: ``(B, M, C)``.
        tokens: ``(T, 1, C)``.
        positions: T ascending indices into the result.

    Returns:
        ``(B, M + T, C)``.
    """
    for token, position in zip(tokens, positions):
        token = token.expand(x.shape[0], 1, -1)
        x = torch.cat([x[:, :position], token, x[:, position:]], dim=1)
    return x


def remove_tokens(x: Tensor, positions: Sequence[int]) -> Tensor:
    """Return the patch tokens ``(B, M, C)`` of ``x (B, M + T, C)``, without its class tokens."""
    for position in reversed(positions):
        x = torch.cat([x[:, :position], x[:, position + 1 :]], dim=1)
    return x


def format_tokens(
    x: Tensor, out_type: str, size: Sequence[int], positions: Sequence[int]
) -> Tensor:
    """Convert a sequence to the format ``out_type``.

    Args:
        x: ``(B, L, C)``.
        out_type: ``'cls_token'`` (class token, or the mean of two, ``(B, C)``), ``'featmap'``
            (patch tokens as ``(B, C, H, W)``), ``'avg_featmap'`` (their mean, ``(B, C)``),
            ``'last_token'`` (``(B, C)``) or ``'raw'`` (``x`` itself).
        size: Grid ``(H, W)`` of the patch tokens.
        positions: Indices of the class tokens.
    """
    if out_type == "raw":
        return x
    if out_type == "last_token":
        return x[:, -1]
    if out_type == "cls_token":
        return torch.stack([x[:, position] for position in positions], dim=1).mean(1)
    x = remove_tokens(x, positions)
    if out_type == "avg_featmap":
        return x.mean(1)
    return x.transpose(1, 2).unflatten(2, tuple(size)).contiguous()


def is_same_grid(size: Sequence[int], new_size: Sequence[int]) -> bool:
    """Return whether two grids are equal, so that no resampling is needed.

    False for dynamic sizes of a traced graph; resampling a table to its own grid does not change
    it.
    """
    return all(map(surely_equal, size, new_size))


def resize_table(table: Tensor, size: Sequence[int], new_size: Sequence[int]) -> Tensor:
    """Resample tables of positions bicubically to another grid.

    Args:
        table: ``(T, H * W, C)``.
        size: Grid ``(H, W)`` of the table.
        new_size: New grid ``(H', W')``.

    Returns:
        ``(T, H' * W', C)``; ``table`` itself if the grids are equal.
    """
    if is_same_grid(size, new_size):
        return table
    grid = table.transpose(1, 2).unflatten(2, tuple(size))
    grid = grid.to(compute_dtype(grid.dtype))
    grid = F.interpolate(grid, size=tuple(new_size), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2).to(table.dtype)


class RotaryTables(nn.Module):
    """Tables of the rotary embedding of Vim's and LocalMamba's first models.

    Pairs of channels are rotated by angles proportional to a coordinate of the token: its row for
    the first half of the channels, its column for the second. Coordinates are scaled to run from 0
    to ``pretrain_side`` on any grid. For grids other than ``size``, the tables are resampled. Class
    tokens are not rotated.

    `RoFormer <https://arxiv.org/abs/2104.09864>`_

    Args:
        channels: Channels C, divisible by 4.
        size: Grid ``(H, W)``.
        pretrain_side: Coordinate past the last token of a row or column.

    Raises:
        ValueError: If ``channels`` is not divisible by 4.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, channels: int, size: Sequence[int], pretrain_side: int = 14) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"embed_dims must be divisible by 4 for rope, got {channels}")
        self.size = tuple(size)
        half = channels // 2
        speed = 10000.0 ** (-torch.arange(0, half, 2, dtype=torch.float64) / half)
        axes = []
        for side in self.size:
            position = torch.arange(side, dtype=torch.float64) * pretrain_side / side
            axes.append((position[:, None] * speed).repeat_interleave(2, dim=1))
        height, width = self.size
        rows = axes[0][:, None].expand(-1, width, -1)
        columns = axes[1][None].expand(height, -1, -1)
        angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)
        self.register_buffer("freqs_cos", angles.cos().float())
        self.register_buffer("freqs_sin", angles.sin().float())

    def forward(self, size: Sequence[int], positions: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of a sequence.

        Args:
            size: Grid ``(H, W)`` of its patch tokens.
            positions: Indices of its T class tokens.

        Returns:
            Two tensors ``(H * W + T, C)`` for :func:`rotate`.
        """
        tables = resize_table(torch.stack([self.freqs_cos, self.freqs_sin]), self.size, size)
        if positions:
            # cosine 1 and sine 0 leave a token unchanged
            still = tables.new_tensor([1.0, 0.0])[:, None, None].expand(-1, 1, tables.shape[2])
            for position in positions:
                tables = torch.cat([tables[:, :position], still, tables[:, position:]], dim=1)
        return tables[0], tables[1]

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Resample tables of another square grid first."""
        for name in ("freqs_cos", "freqs_sin"):
            table = state_dict.get(f"{prefix}{name}")
            if table is None or table.dim() != 2 or len(table) == math.prod(self.size):
                continue
            side = math.isqrt(len(table))
            if side**2 == len(table):
                table = resize_table(table[None], (side, side), self.size)[0]
                state_dict[f"{prefix}{name}"] = table
        super()._load_from_state_dict(state_dict, prefix, *args)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of channels of ``x (B, L, C)`` by the angles of ``(L, C)`` tables."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-second, first], dim=-1).flatten(-2)
    return x * cos + turned * sin
