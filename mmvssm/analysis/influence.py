"""Influence maps: the contribution of every pixel of a layer's map to one of them, by route.

For given steps, B and C, a selective scan is linear in its input, so it can be written as a matrix
of contributions, like attention: `VMamba <https://arxiv.org/abs/2401.10166>`_, `The Hidden
Attention of Mamba Models <https://arxiv.org/abs/2403.01590>`_. Single rows of the matrix are
computed from the recurrence, without dividing by decays, which underflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvssm.models.layers import from_windows, to_windows

from .scan_records import LayerScans, RouteScan, record_scans

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL = 2.3  # inches
_PANELS_PER_ROW = 6


@dataclass(frozen=True)
class InfluenceMap:
    """Contributions of pixels along one route, or along all.

    Attributes:
        name: Name of the route.
        values: Contributions, float64 ``(H, W)``.
        query: The pixel ``(row, column)`` that they contribute to; None for a class token.
        cls_values: Contributions of the class tokens.
        cls_places: Index of the pixel before which each class token is inserted.
    """

    name: str
    values: Tensor
    query: tuple[int, int] | None
    cls_values: tuple[float, ...] = ()
    cls_places: tuple[int, ...] = ()


@dataclass(frozen=True)
class Influence:
    """Influence on one pixel of a layer.

    Attributes:
        kind: Kind of contribution (see :data:`KINDS`).
        routes: A map for each route, of the size that the route visits.
        merged: Sum of the maps; smaller ones are resized bilinearly.
    """

    kind: str
    routes: list[InfluenceMap]
    merged: InfluenceMap


def influence(
    backbone: nn.Module,
    image: Tensor,
    layer: int,
    query: Sequence[float] | int,
    kind: str = "influence",
) -> Influence:
    """Compute the contributions of all pixels to one pixel in the scans of a layer.

    These are contributions to the output of the scan, averaged over the channels, without the skip
    connection through D.

    Args:
        backbone: A backbone of any family, in evaluation mode.
        image: ``(1, 3, H, W)``.
        layer: Index of the block, counted from 0 through all stages.
        query: Position of the pixel as fractions of height and width, from 0 to 1; or the index of
            a class token.
        kind: Kind of contribution (see :data:`KINDS`).

    Raises:
        ValueError: If the layer has no scan, or an argument is not one of its choices.
    """
    if not isinstance(query, int) and (len(query) != 2 or not all(0 <= at <= 1 for at in query)):
        raise ValueError(f"query must be two fractions from 0 to 1, got {tuple(query)}")
    scans = record_scans(backbone, layer, image)
    window, place = _find(scans, query)
    maps = [_one_route(scans, window, place, route, kind) for route in scans.routes[window]]
    merged = torch.zeros(scans.size, dtype=torch.float64)
    for part in maps:
        values = part.values[None, None]
        if part.values.shape != scans.size:
            values = F.interpolate(values, size=scans.size, mode="bilinear")
        merged += values[0, 0]
    cls_values = tuple(map(sum, zip(*(part.cls_values for part in maps))))
    total = InfluenceMap("all routes", merged, maps[0].query, cls_values, maps[0].cls_places)
    return Influence(kind, maps, total)


def influence_matrix(route: RouteScan, kind: str = "influence") -> Tensor:
    """Return the contributions of every place to every place, float64 ``(H * W + T,) * 2``."""
    return torch.stack([route.row(place, kind) for place in range(route.num_places)])


def _find(scans: LayerScans, query: Sequence[float] | int) -> tuple[int, int | tuple[int, int]]:
    """Return the window of the query, and its class token or its pixel on the layer's map."""
    first = scans.routes[0][0]
    if isinstance(query, int):
        if query not in range(len(first.cls_places)):
            raise ValueError(
                f"query must be below {len(first.cls_places)}, the number of class tokens,"
                f" got {query}"
            )
        return 0, query
    row, column = (min(int(at * n), n - 1) for at, n in zip(query, scans.size))
    if scans.window_size is None:
        return 0, (row, column)
    per_row = -(-scans.size[1] // scans.window_size)
    return row // scans.window_size * per_row + column // scans.window_size, (row, column)


def _one_route(
    scans: LayerScans, window: int, query: int | tuple[int, int], route: RouteScan, kind: str
) -> InfluenceMap:
    (height, width), side = route.size, scans.window_size
    if isinstance(query, int):
        place, at = height * width + query, None
    else:
        row, column = (at % side if side else at for at in query)
        whole = (side, side) if side else scans.size
        # the pixel of a smaller map that covers the query
        row, column = row * height // whole[0], column * width // whole[1]
        place, at = row * width + column, query if side else (row, column)
    values = route.row(place, kind).cpu()
    pixels = values[: height * width].view(height, width)
    if side:
        maps = to_windows(torch.zeros(1, *scans.size, 1, dtype=torch.float64), side)
        maps[window, :, :, 0] = pixels
        pixels = from_windows(maps, scans.size)[0, :, :, 0]
    return InfluenceMap(
        route.name, pixels, at, tuple(values[height * width :].tolist()), route.cls_places
    )


def draw_influence(
    found: Influence,
    title: str = "",
    image: Tensor | None = None,
    columns: int = _PANELS_PER_ROW,
) -> Figure:
    """Draw a panel for each route and one for their sum: red raises the output, blue lowers it.

    Every panel has its own scale, to the power of 0.5 in both directions. A box marks the query; a
    star is a class token, in the colour of its contribution.

    Args:
        found: Result of :func:`influence`.
        title: Title of the figure.
        image: uint8 ``(H, W, 3)`` in RGB, drawn beside the maps.
        columns: Largest number of panels per row.

    Returns:
        A matplotlib figure; needs matplotlib.
    """
    from matplotlib.figure import Figure

    maps = [*found.routes, found.merged]
    count = len(maps) + (image is not None)
    columns = min(count, columns)
    rows = -(-count // columns)
    size = columns * _PANEL, rows * (_PANEL + 0.25) + (0.3 if title else 0)
    figure = Figure(figsize=size, layout="constrained", dpi=100)
    panels = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for axes in panels:
        axes.set_axis_off()
    if image is not None:
        panels[0].imshow(image.numpy())
        panels[0].set_title("image", fontsize=8)
        panels = panels[1:]
    for axes, part in zip(panels, maps):
        _draw_map(axes, part)
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_map(axes: Axes, part: InfluenceMap) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm
    from matplotlib.patches import Rectangle

    height, width = part.values.shape
    largest = max([part.values.abs().max().item(), *map(abs, part.cls_values), 1e-30])
    power, colors = PowerNorm(0.5, 0, largest), colormaps["RdBu_r"]

    def color(values: Tensor) -> Tensor:
        """Map values to positions in the colour map, from 0 (blue) to 1 (red)."""
        strength = torch.from_numpy(power(values.abs().numpy()).data)
        return 0.5 + 0.5 * strength * values.sign()

    axes.imshow(color(part.values).numpy(), cmap=colors, vmin=0, vmax=1)
    for place, value in zip(part.cls_places, part.cls_values):
        row, column = divmod(place, width) if place < height * width else (height - 1, width)
        shade = colors(color(torch.tensor([value], dtype=torch.float64)).item())
        axes.plot(
            column - 0.5, row, "*", color=shade, markeredgecolor="black", markersize=11,
            clip_on=False, zorder=4,
        )  # fmt: skip
    if part.query is not None:
        row, column = part.query
        corner = column - 0.5, row - 0.5
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=1.5))
    axes.set_title(part.name.replace(", then ", ",\nthen "), fontsize=8)
