"""Routes: orders of visiting the pixels of a map, as int32 index tables ``(K, L)``.

An entry is the flat row-major index ``row * width + column`` of the pixel visited at that step, or
-1 for a zero token. Every builder takes ``device=`` besides its sizes. Tables are cached per size
and device and shared by all layers: never write into one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps

import torch
from torch import Tensor
from torch.nn import functional as F

from .backend import tracing


def _cached(build: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keep the tables of a builder, which may be called under any mode of torch."""

    def on_device(*sizes: int, device: torch.device | str, **options: object) -> Tensor:
        for size in sizes:
            if size < 1:
                raise ValueError(f"sizes of {build.__name__} must be at least 1, got {sizes}")
        # A tensor made in inference mode could not be saved for a later backward pass.
        with torch.inference_mode(False):
            return build(*sizes, **options).to(device)

    keep = lru_cache(maxsize=1024)(on_device)

    @wraps(build)
    def table(*sizes: int, device: torch.device | str = "cpu", **options: object) -> Tensor:
        # A table made while tracing is no real tensor and must not be kept.
        if tracing() or type(torch.empty(0)) is not Tensor:
            return on_device(*sizes, device=device, **options)
        return keep(*sizes, device=device, **options)

    return table


def _rows(height: int, width: int) -> Tensor:
    return torch.arange(height * width, dtype=torch.int32)


def _columns(height: int, width: int) -> Tensor:
    return _rows(height, width).view(height, width).t().reshape(-1)


@_cached
def cross2d(height: int, width: int) -> Tensor:
    """Rows, columns, rows reversed, columns reversed (VMamba's cross scan).

    Args:
        height: Rows of the map.
        width: Columns of the map.

    Returns:
        int32 ``(4, height * width)``.

    Raises:
        ValueError: If a size is not positive.
    """
    forward = torch.stack([_rows(height, width), _columns(height, width)])
    return torch.cat([forward, forward.flip(1)])


@_cached
def unidi(height: int, width: int) -> Tensor:
    """Rows, four times: VMamba's unidirectional ablation. See :func:`cross2d`."""
    return _rows(height, width).expand(4, -1).contiguous()


@_cached
def bidi(height: int, width: int) -> Tensor:
    """Rows, rows, rows reversed, rows reversed: the bidirectional ablation. See :func:`cross2d`."""
    rows = _rows(height, width)
    return torch.stack([rows, rows, rows.flip(0), rows.flip(0)])


@_cached
def forward_backward(length: int) -> Tensor:
    """A sequence from its start and from its end.

    Args:
        length: Positions of the sequence.

    Returns:
        int32 ``(2, length)``.

    Raises:
        ValueError: If the length is not positive.
    """
    line = torch.arange(length, dtype=torch.int32)
    return torch.stack([line, line.flip(0)])


@_cached
def rows(height: int, width: int) -> Tensor:
    """Row after row: one route, int32 ``(1, height * width)``. See :func:`cross2d`."""
    return _rows(height, width)[None]


@_cached
def atrous(height: int, width: int) -> Tensor:
    """Every second row and column, from four offsets (EfficientVMamba's scan of step 2).

    The routes start at (row, column) (0, 0), (1, 0), (0, 1) and (1, 1) and visit each pixel once in
    all, the first and third row by row, the others column by column. Odd sides are completed with
    zero tokens. See :func:`cross2d`.

    Returns:
        int32 ``(4, ceil(height / 2) * ceil(width / 2))``.
    """
    grid = F.pad(_rows(height, width).view(height, width), (0, width % 2, 0, height % 2), value=-1)
    routes = [
        grid[0::2, 0::2],
        grid[1::2, 0::2].t(),
        grid[0::2, 1::2],
        grid[1::2, 1::2].t(),
    ]
    return torch.stack([route.reshape(-1) for route in routes])


@_cached
def three_orders(height: int, width: int, *, apart: bool = False) -> Tensor:
    """Rows reversed, columns, columns reversed in one sequence (MSVMamba's half-resolution scan).

    The state is carried from one order to the next. See :func:`cross2d`.

    Args:
        height: Rows of the map.
        width: Columns of the map.
        apart: Number the pixels on from order to order, as ``out_routes`` that give each order a
            map of its own.

    Returns:
        int32 ``(1, 3 * height * width)``.
    """
    columns = _columns(height, width)
    orders = torch.stack([_rows(height, width).flip(0), columns, columns.flip(0)])
    if apart:
        orders += height * width * torch.arange(3, dtype=torch.int32)[:, None]
    return orders.view(1, -1)


_DIRECTION = re.compile(r"(h|v|w([1-9]\d*))(_flip)?")


def check_direction(name: str) -> None:
    """Raise unless ``name`` is a direction that :func:`directions` knows.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(name, str) or not _DIRECTION.fullmatch(name):
        raise ValueError(
            f"a direction must be 'h' (rows), 'v' (columns) or 'wK' (windows of K x K pixels, as in"
            f" 'w2' and 'w7'), or one of these with '_flip' behind it, got {name!r}"
        )


def _windows(height: int, width: int, size: int) -> Tensor:
    pad = (0, -width % size, 0, -height % size)
    grid = F.pad(_rows(height, width).view(height, width), pad, value=-1)
    return grid.unflatten(1, (-1, size)).unflatten(0, (-1, size)).transpose(1, 2).reshape(-1)


def _direction(name: str, height: int, width: int) -> Tensor:
    check_direction(name)
    kind, window, flip = _DIRECTION.fullmatch(name).groups()
    if window:
        route = _windows(height, width, int(window))
    else:
        route = (_rows if kind == "h" else _columns)(height, width)
    return route.flip(0) if flip else route


def _with_class_token(route: Tensor, position: int) -> Tensor:
    """The token at ``position`` of the row-major sequence also comes at that step of a route."""
    route = torch.where(route >= position, route + 1, route)
    return torch.cat([route[:position], route.new_tensor([position]), route[position:]])


def _stack_routes(routes: Sequence[Tensor]) -> Tensor:
    # Zero tokens behind a sequence change nothing before them.
    length = max(route.numel() for route in routes)
    return torch.stack([F.pad(route, (0, length - route.numel()), value=-1) for route in routes])


@_cached
def directions(
    height: int, width: int, *, names: tuple[str, ...], cls_position: int | None = None
) -> Tensor:
    """Rows, columns and windows, each forward or flipped (LocalMamba's directions).

    Args:
        height: Rows of the map.
        width: Columns of the map.
        names: One direction per route: ``'h'`` (row by row), ``'v'`` (column by column), ``'wK'``
            (window by window of ``K x K`` pixels, both row by row; maps that windows do not divide
            are completed at the right and bottom with zero tokens), or one of these with
            ``'_flip'`` (reversed, zero tokens included).
        cls_position: Index of a class token in the row-major sequence, which then has one token
            more than the map; every route visits it at the step of this number. None for none.

    Returns:
        int32 ``(len(names), L)``; shorter routes end with zero tokens.

    Raises:
        ValueError: If a size is not positive or a direction unknown.
    """
    routes = [_direction(name, height, width) for name in names]
    if cls_position is not None:
        routes = [_with_class_token(route, cls_position) for route in routes]
    return _stack_routes(routes)


@_cached
def directions_upstream_out_routes(
    height: int, width: int, *, names: tuple[str, ...], cls_position: int | None = None
) -> Tensor:
    """Where LocalMamba's published code puts the outputs of :func:`directions`.

    It takes columns back by the order itself instead of by its inverse, which scrambles maps of
    ``height != width``; all else goes where it was read.

    Returns:
        int32 of the shape of :func:`directions`, for ``out_routes``.
    """
    targets = []
    for name in names:
        if name.startswith("v"):
            check_direction(name)
            # step a * width + b goes to b * height + a
            target = _columns(width, height)
            targets.append(target.flip(0) if name.endswith("_flip") else target)
        else:
            targets.append(_direction(name, height, width))
    if cls_position is not None:
        targets = [_with_class_token(target, cls_position) for target in targets]
    return _stack_routes(targets)
