"""Pictures of the routes along which a layer scans its map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmvssm.models.layers import MS2D, SS2D, CheckpointedBlock, MambaMixer, SelectiveScans
from mmvssm.models.layers.ss2d import ROUTE_TABLES
from mmvssm.models.layers.tokens import cls_positions
from mmvssm.ops import routes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: What the routes of tables with fixed orders do, in the order of the tables.
ROUTE_NAMES = {
    "cross2d": ("rows", "columns", "rows reversed", "columns reversed"),
    "unidi": ("rows",) * 4,
    "bidi": ("rows", "rows", "rows reversed", "rows reversed"),
    "atrous": (
        "even rows, even columns",
        "odd rows, even columns",
        "even rows, odd columns",
        "odd rows, odd columns",
    ),
}
_ORDERS = ("rows reversed", "columns", "columns reversed")
_PANEL = 2.3  # inches
_REACH = 2  # pixels that an arrow leads at most; longer moves are lines
_PANELS_PER_ROW = 4


@dataclass(frozen=True)
class Route:
    """A sequence of visits of one scan.

    Attributes:
        name: What it does, in words.
        size: Map ``(H, W)`` that it visits.
        steps: int64 ``(L,)``: flat row-major index of the pixel visited at each step, -1 for a zero
            token, ``H * W + t`` for class token ``t``.
        class_places: Pixel before which each class token stands; ``H * W`` for behind all.
        starts: Steps, besides the first, at which the state begins anew.
        first: Steps of the same scan before this part of it.
        total: Steps of the whole scan; None for those of ``steps``.
    """

    name: str
    size: tuple[int, int]
    steps: Tensor
    class_places: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    first: int = 0
    total: int | None = None


def _describe(direction: str) -> str:
    kind = direction.removesuffix("_flip")
    what = {"h": "rows", "v": "columns"}.get(kind) or f"{kind[1:]}x{kind[1:]} windows"
    return f"{direction}: {what}{' reversed' if kind != direction else ''}"


def _table_routes(names: Sequence[str], size: tuple[int, int], table: Tensor) -> list[Route]:
    return [Route(name, size, steps.long()) for name, steps in zip(names, table)]


def _cascade_routes(height: int, width: int) -> list[Route]:
    """Each row, later each column, is a sequence of its own that both scans of a pair read."""
    rows = torch.arange(height * width).view(height, width)
    found = []
    for what, lines in (("rows", rows), ("columns", rows.t())):
        starts = tuple(range(lines.shape[1], lines.numel(), lines.shape[1]))
        for name, steps in (
            (f"each of the {what}", lines),
            (f"each of the {what}, reversed", lines.flip(1)),
        ):
            found.append(Route(name, (height, width), steps.flatten(), starts=starts))
    return found


def _multi_scale_routes(height: int, width: int) -> list[Route]:
    (full,) = _table_routes(["full map: rows"], (height, width), routes.rows(height, width))
    size = (height + 1) // 2, (width + 1) // 2
    table = routes.three_orders(*size).view(len(_ORDERS), -1).long()
    small = [
        Route(f"half map: {name}", size, steps, first=i * len(steps), total=table.numel())
        for i, (name, steps) in enumerate(zip(_ORDERS, table))
    ]
    return [full, *small]


def _token_routes(mixer: MambaMixer, size: tuple[int, int], places: Sequence[int]) -> list[Route]:
    num_pixels, positions = size[0] * size[1], tuple(places)
    tokens = list(range(num_pixels))
    for t, position in enumerate(positions):
        tokens.insert(position, num_pixels + t)
    if mixer.directions is None:
        table = routes.forward_backward(len(tokens))[: mixer.num_routes]
        names = ("rows", "rows reversed")
    else:
        position = positions[0] if positions else None
        table = routes.directions(*size, names=mixer.directions, cls_position=position)
        names = map(_describe, mixer.directions)
    # -1 takes the entry behind the last
    table = torch.tensor([*tokens, -1])[table.long()]
    before = tuple(position - t for t, position in enumerate(positions))
    return [Route(name, size, steps, before) for name, steps in zip(names, table)]


def mixer_routes(
    mixer: SelectiveScans, height: int, width: int, class_tokens: Sequence[int] = ()
) -> list[Route]:
    """The routes of a mixer over a map, in the order of its parameters.

    Args:
        mixer: An ``SS2D``, ``MS2D`` or ``MambaMixer``. Of ``MS2D`` the orders of the half map,
            one scan, come as three parts.
        height: Rows of the map.
        width: Columns of the map.
        class_tokens: Ascending places of the class tokens in the sequence of a ``MambaMixer``.

    Raises:
        ValueError: If a size is not positive.
        TypeError: If the mixer is none of these.
    """
    if isinstance(mixer, MambaMixer):
        return _token_routes(mixer, (height, width), class_tokens)
    if isinstance(mixer, MS2D):
        return _multi_scale_routes(height, width)
    if not isinstance(mixer, SS2D):
        raise TypeError(f"mixer must be SS2D, MS2D or MambaMixer, got {type(mixer).__name__}")
    if mixer.directions is not None:
        names = [_describe(name) for name in mixer.directions]
        table = routes.directions(height, width, names=mixer.directions)
    elif mixer.scan == "cascade":
        return _cascade_routes(height, width)
    else:
        names = ROUTE_NAMES[mixer.scan]
        table = ROUTE_TABLES[mixer.scan](height, width)
    return _table_routes(names, (height, width), table)


def routes_of(backbone: nn.Module, layer: int, height: int, width: int) -> list[Route]:
    """The routes of one layer of a backbone, see :func:`mixer_routes`.

    Args:
        backbone: One of this package.
        layer: Number of the block, counted from 0 through all stages.
        height: Rows of the map.
        width: Columns of the map.

    Raises:
        ValueError: If there is no such layer, it has no scan, or a size is not positive.
    """
    blocks = [module for module in backbone.modules() if isinstance(module, CheckpointedBlock)]
    mixers = [
        next((part for part in block.modules() if isinstance(part, SelectiveScans)), None)
        for block in blocks
    ]
    if layer not in range(len(mixers)):
        raise ValueError(f"layer must be from 0 to {len(mixers) - 1}, got {layer}")
    if min(height, width) < 1:
        raise ValueError(f"the map must have at least one pixel, got {height}x{width}")
    if mixers[layer] is None:
        scanning = [str(i) for i, mixer in enumerate(mixers) if mixer is not None]
        raise ValueError(f"layer {layer} has no scan; layers with one: {', '.join(scanning)}")
    places = cls_positions(getattr(backbone, "used_cls_place", "none"), height * width)
    return mixer_routes(mixers[layer], height, width, places)


def _points(route: Route) -> Tensor:
    """Where the steps are drawn, ``(L, 2)`` as x, y; zero tokens are nan."""
    height, width = route.size
    pixels = torch.arange(height * width)
    places = [
        (place % width - 0.5, place // width)
        if place < height * width
        else (width - 0.5, height - 1)
        for place in route.class_places
    ]
    points = torch.stack([pixels % width, pixels // width], dim=1).double()
    nowhere = torch.full((1, 2), torch.nan, dtype=torch.float64)
    return torch.cat([points, torch.tensor(places).double().view(-1, 2), nowhere])[route.steps]


def _draw_route(axes: Axes, route: Route) -> None:
    """One panel: pixels by the time of their visit, arrows from visit to visit."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    (height, width), steps = route.size, route.steps
    total = route.total or len(steps)
    shares = (route.first + torch.arange(len(steps))) / max(total - 1, 1)
    colors = colormaps["viridis"](shares.numpy())
    ground = torch.ones(height * width, 4, dtype=torch.float64)
    on_map = (steps >= 0) & (steps < height * width)
    # pale, so that arrows stand out
    ground[steps[on_map]] = 0.55 * torch.from_numpy(colors)[on_map] + 0.45
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
    # dotted where zero tokens come between
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


def draw_routes(found: Sequence[Route], title: str = "") -> Figure:
    """A picture with a panel for each route.

    Pixels are coloured by the time of their visit, from violet to yellow; those that are never
    visited stay white. Arrows lead to neighbours, lines to pixels farther away, dotted ones where
    zero tokens come between. The first visit is a disc, the last a square, a class token a star.

    Args:
        found: What :func:`routes_of` gives.
        title: Headline of the picture.

    Returns:
        A figure of matplotlib, which must be installed, to be saved by its ``savefig``.
    """
    from matplotlib.figure import Figure

    columns = min(len(found), _PANELS_PER_ROW)
    rows = -(-len(found) // columns)
    size = columns * _PANEL, rows * (_PANEL + 0.25) + (0.3 if title else 0)
    figure = Figure(figsize=size, layout="constrained", dpi=100)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, route in zip(panels, found):
        _draw_route(axes, route)
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=10)
    return figure
