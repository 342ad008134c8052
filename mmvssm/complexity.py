"""FLOPs of scans, for the package's own counter and those of MMEngine and fvcore."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from math import prod
from typing import Any

Shape = Sequence[int]
#: Modules of counters, and the name of their table from operators to functions that count them.
_COUNTERS = {
    "mmengine.analysis.complexity_analysis": "_DEFAULT_SUPPORTED_FLOP_OPS",
    "fvcore.nn.flop_count": "_DEFAULT_SUPPORTED_OPS",
}


@dataclass(frozen=True)
class ScanCost:
    """Multiply-accumulates of scans as the authors of a family count them.

    Attributes:
        per_state: Number per state of a scanned element.
        per_element: Number per scanned element in addition to its states.
        once: Whether convolution and projections count once instead of once per route.
        precision: Relative precision to which this reproduces the published figures.
    """

    per_state: int = 9
    per_element: int = 1
    once: bool = False
    precision: float = 3e-3

    def __str__(self) -> str:
        return f"{self.per_state} N + {self.per_element}"

    def macs(self, elements: float, d_state: int) -> float:
        """Return the cost of a scan over ``elements`` = routes x length x channels of N states."""
        return elements * (self.per_state * d_state + self.per_element)

    def scan_2d_macs(self, x: Shape, routes: Shape, A: Shape, dt_weight: Shape) -> float:
        """Return the cost of ``selective_scan_2d`` from the shapes of its arguments.

        The papers project at every visit of a pixel; the package projects once per pixel, before
        the op. The cost of projecting at further visits is added, so that both counts agree.
        """
        (batch, pixels, *_), steps, d_state = x, routes[1], A[1]
        num_routes, channels, dt_rank = dt_weight
        step = self.macs(num_routes * channels, d_state) + num_routes * channels * dt_rank
        again = max(steps - pixels, 0) * num_routes * channels * (dt_rank + 2 * d_state)
        return batch * (steps * step + again)


def _sizes(value: Any) -> list[int]:
    """Return the shape of a value of a traced graph."""
    return value.type().sizes()


def _count_scan(inputs: list[Any], outputs: list[Any]) -> float:
    u, _, A, *_ = inputs
    return ScanCost().macs(prod(_sizes(u)), _sizes(A)[1])


def _count_scan_2d(inputs: list[Any], outputs: list[Any]) -> float:
    x, _, routes, _, A, dt_weight, *_ = inputs
    return ScanCost().scan_2d_macs(*map(_sizes, (x, routes, A, dt_weight)))


_HANDLES: dict[str, Callable[[list[Any], list[Any]], float]] = {
    "mmvssm::selective_scan": _count_scan,
    "mmvssm::selective_scan_2d": _count_scan_2d,
}


def register_with_counters() -> None:
    """Register the scans with the counters of MMEngine and, if installed, fvcore.

    These counters see only operators, so they count all families as most papers do, with
    ``9 N + 1`` multiply-accumulates per scanned element. :func:`mmvssm.analysis.count_flops`
    follows the convention of each family.
    """
    for name, table in _COUNTERS.items():
        if find_spec(name.partition(".")[0]) is not None:
            getattr(import_module(name), table).update(_HANDLES)
