"""Figures of the routes along which a layer scans its map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmvssm.models.layers import CheckpointedBlock, Route, SelectiveScans

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL = 2.3  # inches
_REACH = 2  # pixels; longer moves are drawn as lines instead of arrows
_PANELS_PER_ROW = 4
_OVER_IMAGE = 0.55  # opacity of colours over an image


def routes_of(backbone: nn.Module, layer: int, height: int, width: int) -> list[Route]:
    """Return the routes of a layer of a backbone; see :meth:`SelectiveScans.name_routes`.

    Args:
        backbone: A model whose blocks have mixers derived from :class:`SelectiveScans`.
        layer: Index of the block, counted from 0 through all stages.
        height: Rows of the map.
        width: Columns of the map.

    Raises:
        ValueError: If there is no such layer, it has no scan, or a size is not positive.
    """
    if min(height, width) < 1:
        raise ValueError(f"the map must have at least one pixel, got {height}x{width}")
    _, mixer = scanning_block(backbone, layer)
    positions = backbone.cls_positions(height * width) if hasattr(backbone, "cls_positions") else ()
    return mixer.name_routes(height, width, positions)


def scanning_block(backbone: nn.Module, layer: int) -> tuple[CheckpointedBlock, SelectiveScans]:
    """Return a block of a backbone and its mixer.

    Args:
        backbone: See :func:`routes_of`.
        layer: See :func:`routes_of`.

    Raises:
        ValueError: If there is no such layer, or it has no scan.
    """
    blocks, mixers = zip(*_layers(backbone).values())
    if layer not in range(len(mixers)):
        raise ValueError(f"layer must be from 0 to {len(mixers) - 1}, got {layer}")
    mixer = mixers[layer]
    if mixer is None:
        scanning = [str(i) for i, mixer in enumerate(mixers) if mixer is not None]
        raise ValueError(f"layer {layer} has no scan; layers with one: {', '.join(scanning)}")
    return blocks[layer], mixer


def name_layers(backbone: nn.Module) -> dict[str, bool]:
    """Return the names of a backbone's layers in order, and whether each of them scans."""
    return {name: mixer is not None for name, (_, mixer) in _layers(backbone).items()}


def _layers(backbone: nn.Module) -> dict[str, tuple[CheckpointedBlock, SelectiveScans | None]]:
    """Return all blocks by their names, each with its mixer."""
    return {
        name: (block, next((m for m in block.modules() if isinstance(m, SelectiveScans)), None))
        for name, block in backbone.named_modules()
        if isinstance(block, CheckpointedBlock)
    }


def _points(route: Route) -> Tensor:
    """Return the positions of the steps in the figure, ``(L, 2)`` as x, y; nan for zero tokens."""
    height, width = route.size
    pixels = torch.arange(height * width)
    places = [
        (place % width - 0.5, place // width)
        if place < height * width
        else (width - 0.5, height - 1)
        for place in route.cls_places
    ]
    points = torch.stack([pixels % width, pixels // width], dim=1).double()
    nowhere = torch.full((1, 2), torch.nan, dtype=torch.float64)
    return torch.cat([points, torch.tensor(places).double().view(-1, 2), nowhere])[route.steps]


def _draw_route(axes: Axes, route: Route, image: np.ndarray | None = None) -> None:
    """Draw one panel: pixels coloured by the time of their visit, and arrows between visits."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    (height, width), steps = route.size, route.steps
    total = route.total or len(steps)
    shares = (route.first + torch.arange(len(steps))) / max(total - 1, 1)
    colors = colormaps["viridis"](shares.numpy())
    ground = torch.ones(height * width, 4, dtype=torch.float64)
    on_map = (steps >= 0) & (steps < height * width)
    # pale colours, so that arrows stand out
    ground[steps[on_map]] = 0.55 * torch.from_numpy(colors)[on_map] + 0.45
    if image is not None:
        axes.imshow(image, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        ground[:, 3] = 0.0
        ground[steps[on_map], 3] = _OVER_IMAGE
    axes.imshow(ground.view(height, width, 4).numpy())

    points = _points(route)
    visits = [i for i, step in enumerate(steps.tolist()) if step >= 0]
    sequence = torch.zeros(len(steps), dtype=torch.int64)
    sequence[list(route.starts)] = 1
    sequence = sequence.cumsum(0)
    moves = [(i, j) for i, j in pairwise(visits) if sequence[i] == sequence[j]]
    near, far = [], []
    for i, j in moves:
        close = (points[j] - points[i]).abs().max() <= _REACH and j == i + 1
        (near if close else far).append((i, j))
    # dotted if zero tokens come in between
    for style, chosen in (
        ("-", [(i, j) for i, j in far if j == i + 1]),
        (":", [(i, j) for i, j in far if j > i + 1]),
    ):
        lines = [points[[i, j]].numpy() for i, j in chosen]
        axes.add_collection(
            LineCollection(lines, colors="0.45", linewidths=0.6, linestyles=style, zorder=2)
        )
    if near:
        start, end = (points[list(ends)] for ends in zip(*near))
        axes.quiver(
            *start.t().numpy(), *(end - start).t().numpy(), color="0.1", angles="xy",
            scale_units="xy", scale=1.1, width=0.008, headwidth=4, headlength=4, zorder=3,
        )  # fmt: skip
    for at, marker in zip((*visits[:1], *visits[-1:]), "os"):
        axes.plot(*points[at].tolist(), marker, color="white", markeredgecolor="black", zorder=4)
    for i in visits:
        if steps[i] >= height * width:
            axes.plot(*points[i].tolist(), "*", color="red", markersize=9, zorder=5, clip_on=False)

    axes.set_xticks(torch.arange(width + 1) - 0.5, minor=True)
    axes.set_yticks(torch.arange(height + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.6)
    axes.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    skipped = len(steps) - len(visits)
    note = f"\n{skipped} zero token{'s' if skipped > 1 else ''}" if skipped else ""
    axes.set_title(route.name + note, fontsize=8)


def draw_routes(
    found: Sequence[Route] | Mapping[str, Sequence[Route]],
    title: str = "",
    image: np.ndarray | None = None,
) -> Figure:
    """Draw a panel for each route.

    Pixels are coloured by the time of their visit, from violet to yellow; unvisited pixels are
    white. Arrows lead to neighbours and lines to pixels farther away, dotted if zero tokens come in
    between. A disc marks the first visit, a square the last, and a star a class token.

    Args:
        found: Result of :func:`routes_of`; or several by name, which get a row each.
        title: Title of the figure.
        image: uint8 ``(H, W, 3)`` in RGB, drawn below the colours.

    Returns:
        A matplotlib figure; needs matplotlib.
    """
    from matplotlib.figure import Figure

    if isinstance(found, Mapping):
        columns = max(map(len, found.values()))
        rows = [(name, list(routes)) for name, routes in found.items()]
    else:
        columns = min(len(found), _PANELS_PER_ROW)
        rows = [("", list(found[i : i + columns])) for i in range(0, len(found), columns)]
    size = columns * _PANEL, len(rows) * (_PANEL + 0.25) + (0.3 if title else 0)
    figure = Figure(figsize=size, layout="constrained", dpi=100)
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for (name, routes), row in zip(rows, panels):
        for axes, route in zip(row, routes):
            _draw_route(axes, route, image)
        for axes in row[len(routes) :]:
            axes.set_axis_off()
        row[0].set_ylabel(name, fontsize=10)
    figure.suptitle(title, fontsize=10)
    return figure
