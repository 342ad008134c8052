"""Routes: orders of visiting the pixels of a map, as int32 index tables ``(K, L)``.

An entry is the flat row-major index ``row * width + column`` of the pixel visited at that step, or
-1 for a zero token, which decays the state and writes nothing. A *builder* is a function of height
and width that returns such a table. :func:`register_routes` makes it available by name to all
mixers and tools. :func:`route_set` returns the :class:`RouteSet` of a builder for one size.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .route_set import RouteSet
from .tracers import between_graphs, tracing, untraced

#: Return type of a builder: the table to read, or a pair of tables to read and to write.
Tables = Tensor | tuple[Tensor, Tensor]
Builder = TypeVar("Builder", bound=Callable[..., Tables])
OUTPUT_ORDERS = ("inverse", "upstream")


@dataclass(frozen=True)
class Scan:
    """A builder of routes with its declared properties.

    Attributes:
        name: Name in messages.
        build: The builder.
        titles: Caption of each route in figures; empty for none.
        disjoint: Whether no two of its routes share a pixel on a map of any size.
        directions: Names of the directions if the routes are made of directions, else empty.
        places_cls: Whether the builder inserts class tokens itself.
    """

    name: str
    build: Callable[..., Tables]
    titles: tuple[str, ...] = ()
    disjoint: bool = False
    directions: tuple[str, ...] = ()
    places_cls: bool = False

    @property
    def num_routes(self) -> int:
        """Number of routes K, which must not depend on the map's size; found on a 4x4 map."""
        return len(self.directions) or route_set(self, 4, 4).num_routes


#: Registered scans by name.
SCANS: dict[str, Scan] = {}


def register_routes(
    name: str, *, titles: Sequence[str] = (), disjoint: bool = False
) -> Callable[[Builder], Builder]:
    """Register a builder of routes under a name that every ``scan=`` argument accepts.

    The builder is called with height and width. It must return an int32 table ``(K, L)``, or a pair
    of such tables: the pixels read and the pixels written at every step. K must not depend on the
    size; it is found on a map of 4x4 pixels. If the builder takes ``cls_positions``, it gets the
    ascending positions of class tokens among the tokens, and its entries are indices of tokens.
    Otherwise every route visits a class token at position ``p`` in step ``p``.

    Args:
        name: The name.
        titles: Caption of each route in figures.
        disjoint: Promise that no two routes share a pixel on a map of any size. Each pixel then
            needs only one projection, also in compiled graphs.

    Raises:
        ValueError: If the name belongs to another builder.

    Example:
        >>> @register_routes("both_ways")
        ... def both_ways(height, width):
        ...     rows = torch.arange(height * width, dtype=torch.int32)
        ...     return torch.stack([rows, rows.flip(0)])
        >>> SS2D(96, scan="both_ways")
    """

    def register(build: Builder) -> Builder:
        known = SCANS.get(name)
        # reloading a module registers the same function again
        is_new = known is not None and known.build is not build
        if is_new and (_place(known.build) != _place(build) or "<" in _place(build)):
            raise ValueError(
                f"routes {name!r} are already registered by {_place(known.build)};"
                " choose another name"
            )
        SCANS[name] = Scan(name, build, tuple(titles), disjoint, places_cls=_places_cls(build))
        return build

    return register


def read_scan(
    scan: str | Sequence[str] | Callable[..., Tables] | Scan, output_order: str = "inverse"
) -> Scan:
    """Return the scan that a ``scan=`` argument describes.

    Args:
        scan: A registered name, a builder (see :func:`register_routes`), or a sequence of
            directions such as ``('h', 'v_flip', 'w7')`` (see :func:`directions`).
        output_order: Where the outputs of directions go (see :func:`directions`).

    Raises:
        ValueError: If the name or a direction is unknown, the sequence of directions is empty, or
            ``output_order`` is unknown or given without directions.
        TypeError: If ``scan`` has another type, or is a builder that is not hashable.
    """
    if output_order not in OUTPUT_ORDERS:
        choices = ", ".join(map(repr, OUTPUT_ORDERS))
        raise ValueError(f"output_order must be one of {choices}, got {output_order!r}")
    is_directions = isinstance(scan, Sequence) and not isinstance(scan, str)
    if output_order != "inverse" and not is_directions:
        raise ValueError(
            f"output_order needs directions as scan, got output_order={output_order!r} with"
            f" scan={scan!r}"
        )
    if isinstance(scan, Scan):
        return scan
    if isinstance(scan, str):
        if scan not in SCANS:
            raise ValueError(
                f"scan must be one of {', '.join(map(repr, SCANS))}, a function registered with"
                f" mmvssm.ops.routes.register_routes, or a list of directions, got {scan!r}"
            )
        return SCANS[scan]
    if is_directions:
        names = tuple(scan)
        if not names:
            raise ValueError("scan must name at least one direction, got none")
        for name in names:
            check_direction(name)
        titles = tuple(_describe(name) for name in names)
        builder = _Directions(names, output_order)
        return Scan(", ".join(names), builder, titles, directions=names)
    if callable(scan):
        if not isinstance(scan, Hashable):
            raise TypeError(
                f"scan must be hashable, because its tables are cached, got {type(scan).__name__};"
                " make it a function or a frozen dataclass"
            )
        registered = (known for known in SCANS.values() if known.build is scan)
        name = getattr(scan, "__name__", repr(scan))
        return next(registered, Scan(name, scan, places_cls=_places_cls(scan)))
    raise TypeError(
        "scan must be a registered name, a list of directions or a function of height and width,"
        f" got {type(scan).__name__}"
    )


@between_graphs
def route_set(
    scan: str | Sequence[str] | Callable[..., Tables] | Scan,
    height: int,
    width: int,
    *,
    device: torch.device | str = "cpu",
    cls_positions: tuple[int, ...] = (),
) -> RouteSet:
    """Return the routes of a scan over a map; they are made once per size and device.

    Args:
        scan: See :func:`read_scan`.
        height: Rows of the map.
        width: Columns of the map.
        device: Device of the tables.
        cls_positions: Ascending positions of T class tokens among the ``height * width + T``
            tokens.

    Raises:
        ValueError: If a size is not positive, or the builder's tables are not routes over the map.
        TypeError: If the builder does not return int32 tables.
    """
    scan = scan if isinstance(scan, Scan) else read_scan(scan)
    if torch.jit.is_tracing():  # sizes are tensors; the routes are constants of the graph
        with untraced():
            cls_positions = tuple(int(position) for position in cls_positions)
            return _kept(scan, int(height), int(width), torch.device(device), cls_positions)
    if height < 1 or width < 1:
        raise ValueError(f"the map must have at least one pixel, got {height}x{width}")
    # tables made while tracing are part of the graph, so they cannot be cached
    if tracing() or type(torch.empty(0)) is not Tensor:
        read, out = _build(scan, height, width, cls_positions)
        num_tokens = height * width + len(cls_positions)
        read, out = read.to(device), None if out is None else out.to(device)
        # class tokens are on all routes
        disjoint = scan.disjoint and not cls_positions
        return RouteSet.traced(read, out, num_pixels=num_tokens, disjoint=disjoint)
    return _kept(scan, height, width, torch.device(device), cls_positions)


@lru_cache(maxsize=1024)
def _kept(
    scan: Scan, height: int, width: int, device: torch.device, cls_positions: tuple[int, ...]
) -> RouteSet:
    # A tensor made in inference mode cannot be saved for a later backward pass.
    with torch.inference_mode(False):
        with torch.device("cpu"):
            try:
                read, out = _build(scan, height, width, cls_positions)
                routes = RouteSet(read, out, num_pixels=height * width + len(cls_positions))
            except Exception as error:  # a builder may raise anything
                kind = TypeError if isinstance(error, TypeError) else ValueError
                what = f"scan {scan.name!r} over {height}x{width} pixels"
                raise kind(f"{what}: {error}") from error
        if scan.disjoint and not cls_positions and not routes.is_disjoint:
            raise ValueError(
                f"scan {scan.name!r} was registered as disjoint, but over {height}x{width} pixels"
                " two of its routes share a pixel"
            )
        return routes if device.type == "cpu" else routes.to(device)


def _build(
    scan: Scan, height: int, width: int, cls_positions: tuple[int, ...]
) -> tuple[Tensor, Tensor | None]:
    """Call the builder, and insert class tokens if it does not do so itself."""
    options: dict[str, Any] = dict(cls_positions=cls_positions) if scan.places_cls else {}
    tables = scan.build(height, width, **options)
    read, out = tables if isinstance(tables, tuple) else (tables, None)
    if not scan.places_cls:
        for position in cls_positions:
            read = _with_cls_token(read, position)
            out = None if out is None else _with_cls_token(out, position)
    return read, out


def _place(build: Callable[..., Tables]) -> str:
    """Return the qualified name of a builder."""
    return f"{build.__module__}.{getattr(build, '__qualname__', build)}"


def _places_cls(build: Callable[..., Tables]) -> bool:
    return "cls_positions" in inspect.signature(build).parameters


def _with_cls_token(table: Tensor, position: int) -> Tensor:
    """Insert the token at ``position`` of the sequence into each route, at that step."""
    table = torch.where(table >= position, table + 1, table)
    token = torch.full_like(table[:, :1], position)
    return torch.cat([table[:, :position], token, table[:, position:]], dim=1)


def _rows(height: int, width: int) -> Tensor:
    return torch.arange(height * width, dtype=torch.int32)


def _columns(height: int, width: int) -> Tensor:
    return _rows(height, width).view(height, width).t().reshape(-1)


@register_routes("cross2d", titles=("rows", "columns", "rows reversed", "columns reversed"))
def cross2d(height: int, width: int) -> Tensor:
    """Visit rows, columns, rows reversed and columns reversed (VMamba's cross scan).

    Args:
        height: Rows of the map.
        width: Columns of the map.

    Returns:
        int32 ``(4, height * width)``.
    """
    forward = torch.stack([_rows(height, width), _columns(height, width)])
    return torch.cat([forward, forward.flip(1)])


@register_routes("unidi", titles=("rows",) * 4)
def unidi(height: int, width: int) -> Tensor:
    """Visit rows four times (VMamba's unidirectional ablation). See :func:`cross2d`."""
    return _rows(height, width).expand(4, -1).contiguous()


@register_routes("bidi", titles=("rows", "rows", "rows reversed", "rows reversed"))
def bidi(height: int, width: int) -> Tensor:
    """Visit rows twice and rows reversed twice (VMamba's bidirectional ablation).

    See :func:`cross2d`.
    """
    rows = _rows(height, width)
    return torch.stack([rows, rows, rows.flip(0), rows.flip(0)])


@register_routes("rows", titles=("rows",))
def rows(height: int, width: int) -> Tensor:
    """Visit rows in a single route, int32 ``(1, height * width)``. See :func:`cross2d`."""
    return _rows(height, width)[None]


@register_routes("bidirectional", titles=("rows", "rows reversed"))
def bidirectional(height: int, width: int, cls_positions: tuple[int, ...] = ()) -> Tensor:
    """Visit all tokens, class tokens included, forward and backward (Vim's scan).

    Args:
        height: Rows of the map.
        width: Columns of the map.
        cls_positions: Positions of T class tokens.

    Returns:
        int32 ``(2, height * width + T)``.
    """
    tokens = torch.arange(height * width + len(cls_positions), dtype=torch.int32)
    return torch.stack([tokens, tokens.flip(0)])


@register_routes(
    "atrous",
    titles=(
        "even rows, even columns",
        "odd rows, even columns",
        "even rows, odd columns",
        "odd rows, odd columns",
    ),
    disjoint=True,
)
def atrous(height: int, width: int) -> Tensor:
    """Visit every second row and column from four offsets (EfficientVMamba's scan of step 2).

    The routes start at (row, column) (0, 0), (1, 0), (0, 1) and (1, 1) and together visit each
    pixel once: the first and third row by row, the others column by column. Odd sides are padded
    with zero tokens. See :func:`cross2d`.

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


_DIRECTION = re.compile(r"(h|v|w([1-9]\d{0,2}))(_flip)?")


def check_direction(name: object) -> None:
    """Raise unless ``name`` is a direction that :func:`directions` knows.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(name, str) or not _DIRECTION.fullmatch(name):
        raise ValueError(
            f"a direction must be 'h' (rows), 'v' (columns) or 'wK' (windows of K x K pixels, K"
            f" from 1 to 999), or one of these followed by '_flip', got {name!r}"
        )


def _describe(direction: str) -> str:
    kind = direction.removesuffix("_flip")
    what = {"h": "rows", "v": "columns"}.get(kind) or f"{kind[1:]}x{kind[1:]} windows"
    return f"{direction}: {what}{' reversed' if kind != direction else ''}"


def _windows(height: int, width: int, size: int) -> Tensor:
    # avoids negative operands, for which torch.compile has no floor division
    rows, columns = ((side + size - 1) // size for side in (height, width))
    # arithmetic, since a view with an axis of windows would specialise a graph on their number
    steps = torch.arange(rows * columns * size**2, dtype=torch.int32)
    window, inside = steps // size**2, steps % size**2
    row = window // columns * size + inside // size
    column = window % columns * size + inside % size
    return torch.where((row < height) & (column < width), row * width + column, -1)


def _direction(name: str, height: int, width: int) -> Tensor:
    kind, window, flip = _DIRECTION.fullmatch(name).groups()
    if window:
        route = _windows(height, width, int(window))
    else:
        route = (_rows if kind == "h" else _columns)(height, width)
    return route.flip(0) if flip else route


def _upstream_out(name: str, height: int, width: int) -> Tensor:
    """Return the pixels to which LocalMamba's published code writes the outputs of a direction."""
    if not name.startswith("v"):
        return _direction(name, height, width)
    # that code reverts columns by their permutation instead of its inverse: step a * width + b goes
    # to pixel b * height + a, which shuffles pixels unless height == width
    pixels = _columns(width, height)
    return pixels.flip(0) if name.endswith("_flip") else pixels


def _stack_routes(routes: Sequence[Tensor]) -> Tensor:
    # Zero tokens at the end of a sequence do not change what comes before.
    length = max(route.numel() for route in routes)
    return torch.stack([F.pad(route, (0, length - route.numel()), value=-1) for route in routes])


def directions(
    height: int, width: int, *, names: Sequence[str], output_order: str = "inverse"
) -> Tables:
    """Visit rows, columns and windows, each forward or reversed (LocalMamba's directions).

    Args:
        height: Rows of the map.
        width: Columns of the map.
        names: One direction per route: ``'h'`` (row by row), ``'v'`` (column by column), ``'wK'``
            (window by window of ``K x K`` pixels, windows and their pixels both row by row; maps
            that windows do not divide are padded with zero tokens at the right and bottom), or one
            of these followed by ``'_flip'`` (reversed, zero tokens included).
        output_order: ``'inverse'`` writes outputs where inputs were read. ``'upstream'`` reproduces
            LocalMamba's published code, which shuffles the pixels of columns unless ``height ==
            width``; use it only to compare results with that code.

    Returns:
        int32 ``(len(names), L)``; shorter routes end with zero tokens. For ``'upstream'``, a pair
        of such tables: the pixels read and written.

    Raises:
        ValueError: If a direction is unknown.
    """
    for name in names:
        check_direction(name)
    read = _stack_routes([_direction(name, height, width) for name in names])
    if output_order == "inverse":
        return read
    return read, _stack_routes([_upstream_out(name, height, width) for name in names])


@dataclass(frozen=True)
class _Directions:
    """Builder of given directions; equal builders share their cached tables."""

    names: tuple[str, ...]
    output_order: str

    def __call__(self, height: int, width: int) -> Tables:
        return directions(height, width, names=self.names, output_order=self.output_order)
