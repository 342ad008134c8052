"""Learned position embeddings: their grid, the rows of class tokens, resizing and loading."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .tokens import (
    CLASS_TOKENS,
    cls_positions,
    insert_tokens,
    is_same_grid,
    remove_tokens,
    resize_table,
)


def square_side(num_patches: int) -> int:
    """Return the side of the square grid of ``num_patches`` patches; 0 if there is none."""
    side = math.isqrt(max(num_patches, 0))
    return side if side**2 == num_patches else 0


@dataclass(frozen=True)
class PositionGrid:
    """Layout of the rows of a position embedding ``(1, T, C)``.

    Attributes:
        grid: Grid ``(H, W)`` of the patches, row by row.
        cls_place: Position of class tokens among the patches (see :func:`cls_positions`).
        drop_cls_token: Whether the model omits class tokens, so that their rows are unused.
    """

    grid: tuple[int, int]
    cls_place: str = "none"
    drop_cls_token: bool = False

    @property
    def num_rows(self) -> int:
        """Number of rows T."""
        return math.prod(self.grid) + CLASS_TOKENS[self.cls_place]

    @property
    def used_cls_place(self) -> str:
        """Position of class tokens in the sequence."""
        return "none" if self.drop_cls_token else self.cls_place

    def at(self, table: Tensor, size: Sequence[int]) -> Tensor:
        """Return the embedding of a sequence.

        Args:
            table: Position embedding ``(1, T, C)`` of this grid.
            size: Grid ``(H', W')`` of the patches of the sequence.

        Returns:
            ``(1, T', C)``, including the rows of class tokens that are in the sequence.
        """
        if not self.drop_cls_token and is_same_grid(self.grid, size):
            return table
        return self._resize(table, self.grid, size, self.used_cls_place)

    def _resize(
        self, table: Tensor, grid: Sequence[int], size: Sequence[int], cls_place: str
    ) -> Tensor:
        """Resize the rows of patches, and insert those of class tokens again."""
        stored = cls_positions(self.cls_place, math.prod(grid))
        cls_rows = table[0, list(stored)][:, None]
        patches = resize_table(remove_tokens(table, stored), grid, size)
        return insert_tokens(patches, cls_rows, cls_positions(cls_place, patches.shape[1]))

    def lacks_cls_rows(self, num_rows: int) -> bool:
        """Return whether a table of ``num_rows`` rows lacks the rows of class tokens.

        The published detectors and segmentors have dropped these rows together with the tokens.
        Only models with ``drop_cls_token`` load such a table, of their own grid or a square one. An
        ambiguous table is assumed to have the rows.
        """
        num_cls = CLASS_TOKENS[self.cls_place]
        if not self.drop_cls_token or not num_cls:
            return False
        if num_rows == self.num_rows or square_side(num_rows - num_cls):
            return False
        return num_rows == math.prod(self.grid) or square_side(num_rows) > 0

    def fit(self, table: Tensor, said: Tensor | None = None) -> Tensor:
        """Fit the table of a checkpoint to this grid.

        Missing rows of class tokens become zeros, and a table of another grid is resized (as from
        stride 16 to stride 8). Without ``said``, the method warns, and assumes this grid if the
        table has its size, else a square grid. A table that fits neither is returned unchanged, so
        that loading reports its shape.

        Args:
            table: Position embedding ``(1, T', C)``.
            said: Tensor ``(H', W', 0)`` whose shape is the grid of the table; None if the
                checkpoint does not store it.

        Returns:
            ``(1, T, C)``, or ``table`` itself.
        """
        if table.dim() != 3:
            return table
        num_cls = CLASS_TOKENS[self.cls_place]
        grid = None if said is None else tuple(said.shape[:2])
        if grid is None:
            is_bare = self.lacks_cls_rows(table.shape[1])
        else:
            is_bare = self.drop_cls_token and table.shape[1] == math.prod(grid)
        if is_bare:
            zeros = table.new_zeros(num_cls, 1, table.shape[2])
            table = insert_tokens(table, zeros, cls_positions(self.cls_place, table.shape[1]))
        if grid is not None:
            fits = table.shape[1] == math.prod(grid) + num_cls
            return self._resize(table, grid, self.grid, self.cls_place) if fits else table
        side = square_side(table.shape[1] - num_cls)
        assumed = self.grid if table.shape[1] == self.num_rows else (side, side)
        if not math.prod(assumed):
            return table
        warnings.warn(
            "the checkpoint does not store the grid of its position embedding; assuming"
            f" {assumed[0]}x{assumed[1]} patches"
            + ("" if assumed == self.grid else f", resized to {self.grid[0]}x{self.grid[1]}"),
            stacklevel=2,
        )
        return self._resize(table, assumed, self.grid, self.cls_place)
