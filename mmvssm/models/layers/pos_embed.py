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
    """Return the side of the square grid of so many patches; 0 if there is none."""
    side = math.isqrt(max(num_patches, 0))
    return side if side**2 == num_patches else 0


@dataclass(frozen=True)
class PositionGrid:
    """Meaning of the rows of a position embedding ``(1, T, C)``.

    Attributes:
        grid: Patches ``(H, W)``, row by row.
        cls_place: Place of class tokens among them, see :func:`cls_positions`.
        drop_cls_token: Whether the model leaves class tokens out; their rows then are not used.
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
        """Place of class tokens in the sequence."""
        return "none" if self.drop_cls_token else self.cls_place

    def at(self, table: Tensor, size: Sequence[int]) -> Tensor:
        """Return the embedding of a sequence.

        Args:
            table: ``(1, T, C)`` of this grid.
            size: Patches ``(H', W')`` of the sequence.

        Returns:
            ``(1, T', C)`` with the rows of the class tokens that the sequence has.
        """
        if not self.drop_cls_token and is_same_grid(self.grid, size):
            return table
        return self._resize(table, self.grid, size, self.used_cls_place)

    def _resize(
        self, table: Tensor, grid: Sequence[int], size: Sequence[int], cls_place: str
    ) -> Tensor:
        """Resize the rows of patches; class tokens get their place among the new ones."""
        stored = cls_positions(self.cls_place, math.prod(grid))
        cls_rows = table[0, list(stored)][:, None]
        patches = resize_table(remove_tokens(table, stored), grid, size)
        return insert_tokens(patches, cls_rows, cls_positions(cls_place, patches.shape[1]))

    def lacks_cls_rows(self, num_rows: int) -> bool:
        """Whether a table of so many rows is one without those of class tokens.

        The published detectors and segmentors have dropped the rows together with the tokens.
        Only models with ``drop_cls_token`` load such a table: of their own grid, or of a square
        one. Where it can also be one with class rows, it is.
        """
        num_cls = CLASS_TOKENS[self.cls_place]
        if not self.drop_cls_token or not num_cls:
            return False
        if num_rows == self.num_rows or square_side(num_rows - num_cls):
            return False
        return num_rows == math.prod(self.grid) or square_side(num_rows) > 0

    def fit(self, table: Tensor, said: Tensor | None = None) -> Tensor:
        """Bring the table of a checkpoint onto this grid.

        Rows of class tokens that it lacks become zeros, and a table of another grid is resized, as
        of stride 16 for stride 8. Without ``said`` a table is taken for one of this grid if it has
        its size, else for one of a square grid, with a warning. One that fits neither stays as it
        is, and loading reports its shape.

        Args:
            table: ``(1, T', C)``.
            said: Tensor ``(H', W', 0)`` whose shape is the grid that it was made for; None if the
                checkpoint does not say.

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
            "the checkpoint does not say the grid of its position embedding, which is taken for"
            f" {assumed[0]}x{assumed[1]} patches"
            + ("" if assumed == self.grid else f" and resized to {self.grid[0]}x{self.grid[1]}"),
            stacklevel=2,
        )
        return self._resize(table, assumed, self.grid, self.cls_place)
