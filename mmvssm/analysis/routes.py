"""Figures of the routes along which a layer scans its map."""

from __future__ import annotations

import re
import textwrap
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
_WIDTH = 9.2  # inches, of a picture whose rows hold panels of several models
_PALED = 0.3  # how much white covers an image, so that lines stand out


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


def _draw_route(
    axes: Axes, route: Route, image: np.ndarray | None = None, scale: float = 1.0
) -> None:
    """Draw a panel: the visits by their time, and the moves from visit to visit.

    Args:
        axes: Where to draw.
        route: What to draw.
        image: uint8 ``(H, W, 3)``; the moves are drawn over it in the colours of time. Without one
            the pixels have these colours.
        scale: Size of the panel, relative to :data:`_PANEL`.
    """
    from matplotlib import colormaps

    (height, width), steps = route.size, route.steps
    total = route.total or len(steps)
    shares = (route.first + torch.arange(len(steps))) / max(total - 1, 1)
    colors = colormaps["viridis"](shares.numpy())
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
        _draw_lines(axes, points, chosen, colors="0.45", linewidths=0.6, linestyles=style)
    if image is None:
        ground = torch.ones(height * width, 4, dtype=torch.float64)
        on_map = (steps >= 0) & (steps < height * width)
        # pale colours, so that arrows stand out
        ground[steps[on_map]] = 0.55 * torch.from_numpy(colors)[on_map] + 0.45
        axes.imshow(ground.view(height, width, 4).numpy())
        _draw_arrows(axes, points, near)
    else:
        pale = 255 * _PALED + (1 - _PALED) * image
        axes.imshow(pale.astype("uint8"), extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        style = dict(capstyle="round")
        _draw_lines(axes, points, near, colors="white", linewidths=7 * scale, **style)
        ends = [colors[j] for _, j in near]
        _draw_lines(axes, points, near, colors=ends, linewidths=4 * scale, **style)
    for at, marker in zip((*visits[:1], *visits[-1:]), "os"):
        axes.plot(
            *points[at].tolist(), marker, color="white", markeredgecolor="black",
            markersize=6 * scale**0.5, zorder=4,
        )  # fmt: skip
    for i in visits:
        if steps[i] >= height * width:
            axes.plot(*points[i].tolist(), "*", color="red", markersize=9, zorder=5, clip_on=False)

    axes.set_xticks(torch.arange(width + 1) - 0.5, minor=True)
    axes.set_yticks(torch.arange(height + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.6 * scale)
    axes.tick_params(which="both", length=0, labelbottom=False, labelleft=False)


def _draw_lines(axes: Axes, points: Tensor, moves: Sequence[tuple[int, int]], **style) -> None:
    from matplotlib.collections import LineCollection

    lines = [points[[i, j]].numpy() for i, j in moves]
    axes.add_collection(LineCollection(lines, zorder=2, **style))


def _draw_arrows(axes: Axes, points: Tensor, moves: Sequence[tuple[int, int]]) -> None:
    if moves:
        start, end = (points[list(ends)] for ends in zip(*moves))
        axes.quiver(
            *start.t().numpy(), *(end - start).t().numpy(), color="0.1", angles="xy",
            scale_units="xy", scale=1.1, width=0.008, headwidth=4, headlength=4, zorder=3,
        )  # fmt: skip


def _title(route: Route) -> str:
    """Return what a panel says of its route."""
    skipped = int((route.steps < 0).sum())
    note = f"\n{skipped} zero token{'s' if skipped > 1 else ''}" if skipped else ""
    return route.name + note


def draw_routes(
    found: Sequence[Route] | Mapping[str, Sequence[Route]],
    title: str = "",
    image: np.ndarray | None = None,
    columns: int | None = None,
) -> Figure:
    """Draw a panel for each route.

    Pixels are coloured by the time of their visit, from violet to yellow; unvisited pixels are
    white. Arrows lead to neighbours and lines to pixels farther away, dotted if zero tokens come in
    between. A disc marks the first visit, a square the last, and a star a class token. Over an
    image, lines have the colours of time instead.

    Args:
        found: Result of :func:`routes_of`; or several by name.
        title: Title of the figure.
        image: uint8 ``(H, W, 3)`` in RGB, drawn below the routes.
        columns: Most panels in a row. Default: 4 for one model, and a row for each of several
            models. If it is given, models share a row where they fit.

    Returns:
        A matplotlib figure; needs matplotlib.

    Raises:
        ValueError: If ``columns`` is less than 1.
    """
    from matplotlib.figure import Figure

    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    if isinstance(found, Mapping) and columns is not None:
        return _draw_together(found, title, image, columns)
    if isinstance(found, Mapping):
        columns = max(map(len, found.values()))
        rows = [(name, list(routes)) for name, routes in found.items()]
    else:
        columns = min(len(found), columns or _PANELS_PER_ROW)
        rows = [("", list(found[i : i + columns])) for i in range(0, len(found), columns)]
    size = columns * _PANEL, len(rows) * (_PANEL + 0.25) + (0.3 if title else 0)
    figure = Figure(figsize=size, layout="constrained", dpi=100)
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for (name, routes), row in zip(rows, panels):
        for axes, route in zip(row, routes):
            _draw_route(axes, route, image)
            axes.set_title(_title(route), fontsize=8)
        for axes in row[len(routes) :]:
            axes.set_axis_off()
        row[0].set_ylabel(name, fontsize=10)
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_together(
    found: Mapping[str, Sequence[Route]], title: str, image: np.ndarray | None, columns: int
) -> Figure:
    """Draw several models, as many in a row as fit, with their names above their first panels."""
    from matplotlib.figure import Figure

    rows: list[list[tuple[str, Route]]] = [[]]
    for name, routes in found.items():
        if rows[-1] and len(rows[-1]) + len(routes) > columns:
            rows.append([])
        for i, route in enumerate(routes):
            if len(rows[-1]) == columns:
                rows.append([])
            rows[-1].append((name if i == 0 else "", route))
    panel = min(_PANEL, _WIDTH / columns)
    letters = int(panel / 0.085)  # that fit below a panel
    texts = [[_words(route, letters) for _, route in row] for row in rows]
    lines = sum(max(text.count("\n") for text in row) + 1 for row in texts)
    height = len(rows) * (panel + 0.3) + lines * 0.17 + (0.3 if title else 0)
    figure = Figure(figsize=(columns * panel, height), layout="constrained", dpi=150)
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for cells, row, words in zip(panels, rows, texts):
        for axes, (name, route), text in zip(cells, row, words):
            _draw_route(axes, route, image, panel / _PANEL)
            axes.set_title(name, loc="left", fontsize=11, fontweight="bold")
            axes.set_xlabel(text, fontsize=10)
        for axes in cells[len(row) :]:
            axes.set_axis_off()
    if len(rows[-1]) < columns:
        with_token = any(len(route.cls_places) for routes in found.values() for route in routes)
        _draw_legend(panels[-1, -1], with_token)
    figure.suptitle(title, fontsize=11)
    return figure


def _words(route: Route, letters: int) -> str:
    """Return what a small panel says: without the code in "w2: 2x2 windows", in short lines."""
    text = re.sub(r"(^|(?<=: ))\w+: ", "", _title(route))
    return "\n".join(textwrap.fill(line, letters) for line in text.replace(", ", ",\n").split("\n"))


def _draw_legend(axes: Axes, with_token: bool) -> None:
    """Explain colours and marks in the place of a panel."""
    from matplotlib.lines import Line2D

    axes.set_box_aspect(1)
    time = axes.inset_axes((0.05, 0.9, 0.9, 0.09))
    time.imshow(torch.linspace(0, 1, 64)[None].numpy(), aspect="auto")
    time.set_xticks([])
    time.set_yticks([])
    time.set_xlabel("time", fontsize=10)
    marks = {"o": ("first pixel", "white", "black"), "s": ("last pixel", "white", "black")}
    if with_token:
        marks["*"] = ("class token", "red", "red")
    handles = [
        Line2D([], [], linestyle="", marker=mark, label=label, color=color, markeredgecolor=edge)
        for mark, (label, color, edge) in marks.items()
    ]
    axes.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.05), fontsize=10,
        frameon=False, handletextpad=0.1, borderpad=0, borderaxespad=0,
    )  # fmt: skip
