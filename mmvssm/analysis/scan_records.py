"""Recording of the scans of a layer for an image, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvssm.models.layers import Route, SelectiveScans
from mmvssm.ops.routes import RouteSet

from .routes import scanning_block

KINDS = {
    "influence": "exact derivative of the output by the input: C exp(S_q - S_p) B d",
    "activation": "match of input and output, without steps and decay: C B",
    "decayed": "the same with decay, without steps: C exp(S_q - S_p) B",
    "decay": "remaining fraction of a state: exp(S_q - S_p)",
}


@dataclass(frozen=True)
class RouteScan:
    """One route of a layer's scan of an image; L steps, D channels, N states, all in float64.

    The scan is ``h[l] = exp(steps[l] * A) h[l-1] + steps[l] * B[l] * u[l]`` and
    ``y[l] = C[l] h[l]``.

    Attributes:
        name: Caption of the route.
        size: Map ``(H, W)`` that it visits.
        read: int64 ``(L,)``: pixel read at each step, -1 for a zero token, ``H * W + t`` for class
            token ``t``.
        written: The same for the pixel written at each step.
        cls_places: Index of the pixel before which each class token is inserted.
        steps: Step sizes ``(L, D)``.
        A: ``(D, N)``.
        B: ``(L, N)``.
        C: ``(L, N)``.
    """

    name: str
    size: tuple[int, int]
    read: Tensor
    written: Tensor
    cls_places: tuple[int, ...]
    steps: Tensor
    A: Tensor
    B: Tensor
    C: Tensor

    @property
    def num_places(self) -> int:
        """Number of pixels and class tokens."""
        return self.size[0] * self.size[1] + len(self.cls_places)

    def row(self, place: int, kind: str = "influence") -> Tensor:
        """Return the contribution of every place to the output at one of them.

        Args:
            place: Index of the pixel, or ``H * W + t`` for class token ``t``.
            kind: Kind of contribution (see :data:`KINDS`), averaged over the channels and summed
                over the states.

        Returns:
            float64 ``(H * W + T,)``.

        Raises:
            ValueError: If the kind is unknown.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        row = self.steps.new_zeros(self.num_places + 1)
        elapsed = self.steps.cumsum(0)
        for last in (self.written == place).nonzero().flatten().tolist():
            seen = slice(0, last + 1)
            states = self.B.new_ones(last + 1, self.A.shape[1])
            if kind != "decay":
                states = self.B[seen] * self.C[last]
            if kind == "activation":
                value = states.sum(1)
            else:
                passed = elapsed[last] - elapsed[seen]
                left = torch.exp(passed[:, :, None] * self.A)
                value = torch.einsum("mdn,mn->md", left, states)
                value = (value * self.steps[seen] if kind == "influence" else value).mean(1)
            # zero tokens are added to an extra row
            row.index_add_(0, self.read[seen] % (self.num_places + 1), value)
        return row[:-1]


@dataclass(frozen=True)
class LayerScans:
    """The scans of a layer.

    Attributes:
        size: Map ``(H, W)`` of the layer.
        routes: Routes of each window; there is one window if the entire map is scanned.
        window_size: Side of the windows; None if there are none.
    """

    size: tuple[int, int]
    routes: list[list[RouteScan]]
    window_size: int | None = None


@torch.no_grad()
def record_scans(backbone: nn.Module, layer: int, image: Tensor) -> LayerScans:
    """Run a backbone and record the scans of one layer.

    Args:
        backbone: A model whose blocks have mixers derived from :class:`SelectiveScans`.
        layer: Index of the block, counted from 0 through all stages.
        image: ``(1, 3, H, W)``.

    Raises:
        ValueError: If there is no such layer, it has no scan or scans the output of another scan,
            or there are several images.
    """
    if len(image) != 1:
        raise ValueError(f"image must have shape (1, C, H, W), got {tuple(image.shape)}")
    block, mixer = scanning_block(backbone, layer)
    stage = next(
        (part for part in backbone.modules() if block in getattr(part, "blocks", ())), None
    )
    inputs: dict[str, tuple] = {}

    def keep(name: str, module: nn.Module) -> Any:
        return module.register_forward_pre_hook(lambda _, args: inputs.update({name: args}))

    handles = [keep("mixer", mixer), *([keep("stage", stage)] if stage is not None else [])]
    try:
        with _recorded_calls(mixer) as calls:
            backbone(image)
    finally:
        for handle in handles:
            handle.remove()
    x, *context = inputs["mixer"]
    size, positions = context if context else (tuple(x.shape[1:3]), ())
    height, width = size
    named = mixer.name_routes(height, width, positions)
    windows = [list(_routes_of_window(calls, named, b, layer)) for b in range(len(x))]
    if stage is None or len(x) == 1:
        return LayerScans(tuple(size), windows)
    return LayerScans(tuple(inputs["stage"][0].shape[1:3]), windows, x.shape[1])


@contextmanager
def _recorded_calls(mixer: SelectiveScans) -> Iterator[list[tuple[RouteSet, tuple[Tensor, ...]]]]:
    """Record the routes and inputs of the scans that a mixer runs."""
    calls: list[tuple[RouteSet, tuple[Tensor, ...]]] = []
    run = mixer.run_scan

    def run_and_keep(
        x: Tensor, routes: RouteSet, *, merge: str = "sum", param_sets: slice = slice(None)
    ) -> Tensor:
        calls.append((routes, mixer.scan_inputs(x, routes, param_sets)))
        return run(x, routes, merge=merge, param_sets=param_sets)

    mixer.run_scan = run_and_keep  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        del mixer.run_scan


def _routes_of_window(
    calls: Sequence[tuple[RouteSet, tuple[Tensor, ...]]], named: list[Route], b: int, layer: int
) -> Iterator[RouteScan]:
    """Yield the routes of all scans of one window, or of the entire map."""
    rest = iter(named)
    for routes, (x, x_dbl, A, dt_weight, dt_bias, _) in calls:
        sets = len(dt_weight)
        for k, A_k in enumerate(A.double().unflatten(0, (sets, -1))):
            parts = [next(rest)]
            # several named routes may be parts of one sequence
            while sum(len(part.steps) for part in parts) < routes.length:
                parts.append(next(rest))
            read = torch.cat([part.steps for part in parts]).to(x.device)
            if len(read) != routes.length:
                raise ValueError(
                    f"layer {layer} scans the output of another scan, so contributions of pixels"
                    " cannot be split by route"
                )
            rows = routes.read[k].long()
            visible = rows >= 0
            values = x_dbl[b, rows.clamp(min=0), min(k, x_dbl.shape[2] - 1)].double()
            values = torch.where(visible[:, None], values, 0)
            rank, states = dt_weight.shape[2], A.shape[1]
            dt, B, C = values.split([rank, states, states], dim=1)
            steps = F.softplus(dt @ dt_weight[k].double().t() + dt_bias[k].double())
            first = parts[0]
            yield RouteScan(
                ", then ".join(part.name for part in parts), first.size, read,
                _written(routes.out[k].long(), first), first.cls_places, steps, A_k, B, C,
            )  # fmt: skip


def _written(out: Tensor, route: Route) -> Tensor:
    """Convert output rows to the places that are written."""
    num_pixels = route.size[0] * route.size[1]
    places = [[num_pixels + t for t, at in enumerate(route.cls_places) if at == p] + [p]
              for p in range(num_pixels + 1)]  # fmt: skip
    order = torch.tensor(list(chain(*places))[:-1], device=out.device)
    # separate parts have separate rows, one map after the other
    return torch.where(out < 0, -1, order[out % len(order)])
