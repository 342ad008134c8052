"""Effective receptive fields: the pixels of an image on which the centre of the last map depends.

`Understanding the Effective Receptive Field in Deep Convolutional Neural Networks
<https://arxiv.org/abs/1701.04128>`_; measured as `VMamba <https://arxiv.org/abs/2401.10166>`_ does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .maps import recorded_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)
POWER = 0.2
_PANEL = 2.4  # inches


@dataclass(frozen=True)
class Area:
    """The smallest square around the centre that holds a given fraction of all contributions.

    Attributes:
        radius: Pixels from the centre to each side.
        side: ``2 * radius + 1``.
        ratio: Area of the square within the image, as a fraction of the image.
    """

    radius: int
    side: int
    ratio: float


@dataclass(frozen=True)
class ReceptiveField:
    """The effective receptive field of a backbone.

    Attributes:
        contribution: float64 ``(H, W)``: contribution of each pixel, averaged over the images.
        num_images: Number of images in the average.
        num_skipped: Number of images skipped because their gradients were not finite.
    """

    contribution: Tensor
    num_images: int
    num_skipped: int = 0

    def display(self, power: float = POWER) -> Tensor:
        """Return ``contribution ** power`` divided by its maximum, ``(H, W)``."""
        shown = self.contribution**power
        return shown / shown.max().clamp(min=torch.finfo(shown.dtype).tiny)

    def area(self, share: float) -> Area | None:
        """Return the smallest square that holds more than a fraction ``share`` of contributions.

        Returns None if no square with a radius below half of the longer side holds enough.
        """
        height, width = self.contribution.shape
        row, column = height // 2, width // 2
        # sums of all rectangles from the upper left corner
        sums = torch.zeros(height + 1, width + 1, dtype=torch.float64)
        sums[1:, 1:] = self.contribution.double().cumsum(0).cumsum(1)
        for radius in range(1, max(height, width) // 2):
            top, bottom = max(row - radius, 0), min(row + radius + 1, height)
            left, right = max(column - radius, 0), min(column + radius + 1, width)
            inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
            if inside > share * sums[-1, -1]:
                ratio = (bottom - top) * (right - left) / (height * width)
                return Area(radius, 2 * radius + 1, ratio)
        return None


def receptive_field(backbone: nn.Module, images: Iterable[Tensor]) -> ReceptiveField:
    """Measure the effective receptive field of the central pixel of the last map.

    The score is the sum of the positive channels of this pixel in the output of the last stage or
    layer, before its norm. A contribution is the positive part of the score's gradient, summed over
    the colours.

    Args:
        backbone: A backbone of any family, in evaluation mode.
        images: Batches ``(B, 3, H, W)`` of one size.

    Raises:
        ValueError: If there are no images, their sizes differ, or no image has finite gradients.
    """
    total, num_images, num_skipped = None, 0, 0
    device = next(backbone.parameters()).device
    for batch in images:
        x = batch.to(device).requires_grad_(True)
        with torch.enable_grad(), recorded_map(backbone) as record:
            backbone(x)
            features = record.to_map(record.output)
            middle = features[:, features.shape[1] // 2, features.shape[2] // 2]
            (gradient,) = torch.autograd.grad(middle.relu().sum(), x)
        maps = gradient.relu().sum(1).double().cpu()
        if total is None:
            total = torch.zeros_like(maps[0])
        if total.shape != maps[0].shape:
            raise ValueError(
                f"images must have the same size, got {tuple(total.shape)} and"
                f" {tuple(maps[0].shape)}"
            )
        finite = maps.flatten(1).isfinite().all(1)
        total += maps[finite].sum(0)
        num_images += int(finite.sum())
        num_skipped += int((~finite).sum())
    if total is None or not num_images:
        raise ValueError("there are no images" if total is None else "no gradients are finite")
    return ReceptiveField(total / num_images, num_images, num_skipped)


def draw_receptive_fields(
    fields: Sequence[Sequence[ReceptiveField | None]],
    columns: Sequence[str],
    rows: Sequence[str],
    power: float = POWER,
) -> Figure:
    """Draw receptive fields side by side: lighter pixels contribute more.

    Args:
        fields: Rows of fields; None leaves a panel empty.
        columns: Titles of the columns.
        rows: Labels of the rows.
        power: See :meth:`ReceptiveField.display`.

    Returns:
        A matplotlib figure; needs matplotlib.
    """
    from matplotlib.figure import Figure

    size = len(columns) * _PANEL, len(rows) * _PANEL + 0.3
    figure = Figure(figsize=size, layout="constrained", dpi=100)
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for i, (label, line) in enumerate(zip(rows, fields)):
        for j, (axes, field) in enumerate(zip(panels[i], line)):
            axes.set_xticks([])
            axes.set_yticks([])
            if i == 0:
                axes.set_title(columns[j], fontsize=8)
            if j == 0:
                axes.set_ylabel(label, fontsize=8)
            if field is None:
                axes.set_frame_on(False)
                continue
            axes.imshow(field.display(power).numpy(), cmap="viridis", vmin=0, vmax=1)
            half = field.area(0.5)
            if half is not None:
                axes.set_xlabel(f"half within {half.side} pixels", fontsize=7)
    return figure
