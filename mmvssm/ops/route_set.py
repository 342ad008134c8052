"""Route sets: the tables along which a scan reads and writes, checked and analysed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_range, check_table
from .route_facts import RouteFacts
from .tracers import tracing, untraced

#: Facts of tables that are in range and otherwise unknown, so that kernels assume the worst case.
IN_RANGE = int(
    RouteFacts.CHECKED
    | RouteFacts.READ_REPEATS
    | RouteFacts.READ_GAPS
    | RouteFacts.OUT_REPEATS
    | RouteFacts.OUT_GAPS
    | RouteFacts.UNION_GAPS
)
_DISJOINT = int(RouteFacts.DISJOINT)
_UNION_GAPS = int(RouteFacts.UNION_GAPS)
_OUT_REPEATS = int(RouteFacts.OUT_REPEATS)


class _derived:
    """An attribute that is computed once, outside of inference mode and of traces.

    Unlike ``functools.cached_property`` it takes no lock, which ``torch.compile`` cannot trace.
    """

    def __init__(self, make: Callable[[RouteSet], Any]) -> None:
        self.make, self.name, self.__doc__ = make, make.__name__, make.__doc__

    def __get__(self, routes: RouteSet | None, owner: type) -> Any:
        if routes is None:
            return self
        # a tensor made in inference mode cannot be saved for a later backward pass
        with torch.inference_mode(False):
            if torch.jit.is_tracing():
                with untraced():
                    value = self.make(routes)
            else:
                value = self.make(routes)
        setattr(routes, self.name, value)
        return value


class RouteSet:
    """K routes of L steps each over P pixels, with the facts that a scan needs about them.

    The tables are checked and analysed only when the set is made, so make a set once and use it for
    many calls. Never write into its tables.

    Attributes:
        read: int32 ``(K, L)``: the pixel read at each step, -1 for a zero token.
        out: int32 ``(K, L)``: the output row written at each step, -1 for none. ``read`` itself
            where outputs go back to the pixels that were read.
        num_pixels: Number of pixels (or tokens) P that can be read.
        num_out: Number of output rows Q.
        facts: Bits of :class:`RouteFacts` that kernels may rely on.
        has_zero_tokens: Whether ``read`` has entries of -1.
        writes_elsewhere: Whether outputs go to other rows than the pixels that were read.

    Args:
        read: Table for ``read``.
        out: Table for ``out``; None for ``read``.
        num_pixels: Number of pixels P; None for one more than the largest entry of ``read``.
        num_out: Number of output rows Q; None for P.

    Raises:
        TypeError: If a table is not an int32 tensor.
        ValueError: If a table is empty or not two-dimensional, has an entry out of range, or the
            two differ in shape or device.
    """

    read: Tensor
    out: Tensor
    num_pixels: int
    num_out: int
    facts: int
    has_zero_tokens: bool
    writes_elsewhere: bool

    def __init__(
        self,
        read: Tensor,
        out: Tensor | None = None,
        *,
        num_pixels: int | None = None,
        num_out: int | None = None,
    ) -> None:
        check_table("routes", read)
        if num_pixels is None:
            num_pixels = max(int(read.max()) + 1, 1)
        self._set(read, out, num_pixels, num_out)
        lowest = check_range("routes", read, self.num_pixels)
        self.has_zero_tokens = lowest < 0
        if out is not None or self.num_out != self.num_pixels:
            check_range("out_routes", self.out, self.num_out)
        self.facts = _find_facts(self)

    def _set(self, read: Tensor, out: Tensor | None, num_pixels: int, num_out: int | None) -> None:
        # an expanded view would be copied on every call
        self.read = read.contiguous()
        num_out = num_pixels if num_out is None else num_out
        # torch.jit.trace turns sizes into tensors
        self.num_pixels, self.num_out = (
            int(size) if isinstance(size, Tensor) and torch.jit.is_tracing() else size
            for size in (num_pixels, num_out)
        )
        if not isinstance(self.num_out, (int, torch.SymInt)) or self.num_out < 1:
            raise ValueError(f"num_out must be a whole number of at least 1, got {self.num_out!r}")
        self.out, self.writes_elsewhere = self.read, out is not None
        if out is not None:
            check_table("out_routes", out)
            if out.shape != read.shape or out.device != read.device:
                raise ValueError(
                    f"out_routes must have shape (K, L) = {tuple(read.shape)} and be on the"
                    f" device of routes, {read.device}, got {tuple(out.shape)} on {out.device}"
                )
            self.out = out.contiguous()

    @classmethod
    def of_tables(
        cls,
        read: Tensor,
        out: Tensor | None = None,
        *,
        num_pixels: int,
        num_out: int | None = None,
        facts: int = 0,
    ) -> RouteSet:
        """Make a set without inspecting the tables' entries, and so without a synchronisation.

        Args:
            read: See :class:`RouteSet`.
            out: See :class:`RouteSet`.
            num_pixels: See :class:`RouteSet`.
            num_out: See :class:`RouteSet`.
            facts: Facts that are known already; with 0, the kernels check the tables on every call.
        """
        routes = cls.__new__(cls)
        check_table("routes", read)
        routes._set(read, out, num_pixels, num_out)
        routes.facts, routes.has_zero_tokens = facts, True
        return routes

    @classmethod
    def traced(
        cls,
        read: Tensor,
        out: Tensor | None = None,
        *,
        num_pixels: int,
        num_out: int | None = None,
        disjoint: bool = False,
    ) -> RouteSet:
        """Make a set from tables without data, as while a graph is traced.

        Entries are clamped to their range instead of being checked, so that the graph does not
        synchronise with a device when it runs.

        Args:
            read: See :class:`RouteSet`.
            out: See :class:`RouteSet`.
            num_pixels: See :class:`RouteSet`.
            num_out: See :class:`RouteSet`.
            disjoint: Whether the builder promises that no two routes share a pixel.
        """
        read = read.clamp(-1, num_pixels - 1)
        if out is not None:
            out = out.clamp(-1, (num_pixels if num_out is None else num_out) - 1)
        facts = IN_RANGE | _DISJOINT if disjoint else IN_RANGE
        return cls.of_tables(read, out, num_pixels=num_pixels, num_out=num_out, facts=facts)

    def __repr__(self) -> str:
        return (
            f"RouteSet({self.num_routes} routes of {self.length} steps, {self.num_pixels} pixels,"
            f" {self.num_out} output rows, {RouteFacts(self.facts)!r}, {self.read.device})"
        )

    @property
    def num_routes(self) -> int:
        """Number of routes K."""
        return self.read.shape[0]

    @property
    def length(self) -> int:
        """Steps L of every route."""
        return self.read.shape[1]

    @property
    def is_disjoint(self) -> bool:
        """Whether no two routes share a pixel and outputs go where inputs were read."""
        return self.facts & _DISJOINT != 0

    def to(self, device: torch.device | str) -> RouteSet:
        """Return the set with its tables on another device, without checking them again."""
        routes = RouteSet.__new__(RouteSet)
        out = self.out.to(device) if self.writes_elsewhere else None
        routes._set(self.read.to(device), out, self.num_pixels, self.num_out)
        routes.facts, routes.has_zero_tokens = self.facts, self.has_zero_tokens
        return routes

    def gather(self, x: Tensor) -> Tensor:
        """Read a map along the routes.

        Args:
            x: ``(B, P, D)``.

        Returns:
            ``(B, L, K, D)``, zeros for zero tokens.
        """
        if self.has_zero_tokens:
            x = F.pad(x, (0, 0, 0, 1))
        return x.index_select(1, self._gather_index).unflatten(1, (-1, self.num_routes))

    @_derived
    def _gather_index(self) -> Tensor:
        index = self.read.t().flatten()
        # an extra row holds the zeros
        return torch.where(index < 0, self.num_pixels, index) if self.has_zero_tokens else index

    def project_once(self, x: Tensor, weight: Tensor) -> Tensor:
        """Project every pixel with the weights of the only route that visits it.

        The routes must be disjoint.

        Args:
            x: ``(B, P, D)``.
            weight: ``(K, E, D)``.

        Returns:
            ``(B, P, E)``, zeros for pixels that no route visits.
        """
        if self.has_zero_tokens:
            x = F.pad(x, (0, 0, 0, 1))
        parts = [
            F.linear(x.index_select(1, index), route_weight)
            for index, route_weight in zip(self._gather_index.view(-1, self.num_routes).t(), weight)
        ]
        y = torch.cat(parts, dim=1)
        if self.facts & _UNION_GAPS:
            y = F.pad(y, (0, 0, 0, 1))
        return y.index_select(1, self._place)

    @_derived
    def _place(self) -> Tensor:
        """Index ``(P,)`` of the step that reads each pixel, counted through all routes."""
        steps = torch.arange(self.read.numel(), dtype=torch.int32, device=self.read.device)
        # zero tokens write to an extra entry; a pixel that is never read gets an extra row's index
        place = steps.new_full((self.num_pixels + 1,), steps.shape[0])
        row = torch.where(self.read < 0, self.num_pixels, self.read).flatten().long()
        return place.scatter_(0, row, steps)[:-1]

    @_derived
    def by_step(self) -> RouteSet:
        """Set for inputs in the order of the steps, as :meth:`gather` returns them."""
        steps = torch.arange(self.length, dtype=torch.int32, device=self.read.device)
        return self._like(
            steps.expand(self.num_routes, -1).contiguous(), self.out, self.length, self.num_out
        )

    @_derived
    def by_written_row(self) -> RouteSet:
        """Set that reads, for each output row, the pixel read at the step that writes it.

        Raises:
            ValueError: If a route writes a row twice.
        """
        if self.facts & _OUT_REPEATS and not is_abstract(self.read):
            raise ValueError("a route writes an output row twice, so no single pixel belongs to it")
        # an extra row collects the outputs that are written nowhere
        row = torch.where(self.out < 0, self.num_out, self.out).long()
        pixels = self.read.new_full((self.num_routes, self.num_out + 1), -1)
        pixels = pixels.scatter_(1, row, self.read)[:, : self.num_out].contiguous()
        return self._like(pixels, None, self.num_pixels, self.num_pixels)

    @_derived
    def joined(self) -> RouteSet:
        """One route that runs through all routes and carries its state from each to the next."""
        out = self.out.reshape(1, -1) if self.writes_elsewhere else None
        return self._like(self.read.reshape(1, -1), out, self.num_pixels, self.num_out)

    @_derived
    def joined_apart(self) -> RouteSet:
        """:attr:`joined`, with separate output rows, Q for each of the K parts."""
        part = torch.arange(self.num_routes, dtype=torch.int32, device=self.read.device)
        rows = torch.where(self.out < 0, -1, self.out + self.num_out * part[:, None])
        num_out = self.num_routes * self.num_out
        return self._like(self.read.reshape(1, -1), rows.reshape(1, -1), self.num_pixels, num_out)

    def _like(self, read: Tensor, out: Tensor | None, num_pixels: int, num_out: int) -> RouteSet:
        make = RouteSet.traced if is_abstract(read) else RouteSet
        return make(read, out, num_pixels=num_pixels, num_out=num_out)


def is_abstract(tensor: Tensor) -> bool:
    """Return whether a tensor has no data: it is being traced, or on the meta device."""
    return tracing() or tensor.is_meta or type(tensor) is not Tensor


def _find_facts(routes: RouteSet) -> int:
    facts = RouteFacts.CHECKED
    same = not routes.writes_elsewhere and routes.num_out == routes.num_pixels
    read = _visits(routes.read, routes.num_pixels)
    out = read if same else _visits(routes.out, routes.num_out)
    users = (out > 0).sum(0)
    for found, fact in (
        (read.max() > 1, RouteFacts.READ_REPEATS),
        (read.min() == 0, RouteFacts.READ_GAPS),
        (out.max() > 1, RouteFacts.OUT_REPEATS),
        (out.min() == 0, RouteFacts.OUT_GAPS),
        (users.min() == 0, RouteFacts.UNION_GAPS),
    ):
        if found:
            facts |= fact
    if same and users.max() <= 1:
        facts |= RouteFacts.DISJOINT
    return int(facts)


def _visits(table: Tensor, size: int) -> Tensor:
    """Count how often each route names each of ``size`` rows: int64 ``(K, size)``."""
    num_routes = len(table)
    first = torch.arange(num_routes, device=table.device)[:, None] * (size + 1)
    row = torch.where(table < 0, size, table) + first
    counts = torch.bincount(row.flatten(), minlength=num_routes * (size + 1))
    return counts.view(num_routes, size + 1)[:, :size]
