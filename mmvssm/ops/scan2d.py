"""The selective scan along routes over a map."""

from __future__ import annotations

import torch
from torch import Tensor

from . import library
from .backend import resolve
from .checks import (
    check_device,
    check_float,
    check_out_dtype,
    check_parameter,
    check_positive,
    check_shape,
    check_tensor,
)
from .reference import selective_scan_2d_reference, selective_scan_chunked
from .selective_scan import autocast_enabled

MERGES = ("sum", "none")


def selective_scan_2d(
    x: Tensor,
    x_dbl: Tensor,
    routes: Tensor,
    A: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    D: Tensor | None = None,
    *,
    out_routes: Tensor | None = None,
    num_out: int | None = None,
    merge: str = "sum",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Scan a map along ``K`` routes and add the results back along them.

    Reads ``x`` and the projections through the route table and writes through it (or through
    ``out_routes``): nothing is flipped, transposed or copied. Steps are
    ``softplus(dt_weight @ dt + dt_bias)``. A route entry of -1 is a zero token: the state decays
    and nothing is read or written. A pixel may be visited several times; outputs add.

    See :mod:`mmvssm.ops.reference` for the definition and its sources, :mod:`mmvssm.ops.routes` for
    route tables. State, decay and sums are float32 whatever the input (float64 for float64 input).

    Args:
        x: Map of ``P`` pixels ``(Bt, P, D)``, or one map per route ``(Bt, P, K, D)``; float32,
            float16, bfloat16 or float64.
        x_dbl: Projections ``(Bt, P, K, R + 2N)``, or shared by the routes ``(Bt, P, 1, R + 2N)``;
            the last axis holds the dt rank, B and C in this order. Dtype of ``x``.
        routes: int32 ``(K, L)`` with entries in ``[-1, P)``.
        A: Negative decay rates ``(K*D, N)``.
        dt_weight: Step projection ``(K, D, R)``.
        dt_bias: Step bias ``(K, D)``.
        D: Skip weights ``(K*D,)``.
        out_routes: int32 ``(K, L)`` with entries in ``[-1, num_out)``; None for ``routes``.
        num_out: Rows of the output; None for ``P``.
        merge: ``'sum'`` adds the routes, ``'none'`` keeps them apart.
        out_dtype: None for the dtype of ``x``, or ``torch.float32``.

    Returns:
        ``(Bt, num_out, D)`` for ``'sum'``, ``(Bt, num_out, K, D)`` for ``'none'``.

    Raises:
        TypeError: If an argument is no tensor or has a wrong dtype.
        ValueError: If a shape, device, route entry or option is wrong, or L, N, K or R is zero.
    """
    check_tensor("x", x, (3, 4))
    check_tensor("x_dbl", x_dbl, 4)
    check_tensor("routes", routes, 2)
    check_tensor("A", A, 2)
    check_tensor("dt_weight", dt_weight, 3)
    check_tensor("dt_bias", dt_bias, 2)
    batch, pixels, channels = x.shape[0], x.shape[1], x.shape[-1]
    (num_routes, length), d_state, dt_rank = routes.shape, A.shape[1], dt_weight.shape[2]
    check_positive(P=pixels, D=channels, K=num_routes, L=length, N=d_state, R=dt_rank)
    if x.dim() == 4:
        check_shape("x", x, (batch, pixels, num_routes, channels), "(Bt, P, K, D)")
    projections = num_routes if x_dbl.shape[2] != 1 else 1
    width = dt_rank + 2 * d_state
    check_shape("x_dbl", x_dbl, (batch, pixels, projections, width), "(Bt, P, K or 1, R + 2N)")
    check_shape("A", A, (num_routes * channels, d_state), "(K*D, N)")
    check_shape("dt_weight", dt_weight, (num_routes, channels, dt_rank), "(K, D, R)")
    check_shape("dt_bias", dt_bias, (num_routes, channels), "(K, D)")
    if D is not None:
        check_tensor("D", D, 1)
        check_shape("D", D, (num_routes * channels,), "(K*D,)")
        check_parameter("D", D)
    for name, value in {"A": A, "dt_weight": dt_weight, "dt_bias": dt_bias}.items():
        check_parameter(name, value)
    if merge not in MERGES:
        raise ValueError(f"merge must be one of {', '.join(MERGES)}, got {merge!r}")
    if num_out is None:
        num_out = pixels
    elif num_out < 1:
        raise ValueError(f"num_out must be at least 1, got {num_out}")
    if autocast_enabled(x.device.type):
        x, x_dbl = library.promote(x, x_dbl)
    check_float("x", x, x_dbl=x_dbl)
    check_device("x", x, A=A, dt_weight=dt_weight, dt_bias=dt_bias, D=D)
    out_dtype = check_out_dtype(out_dtype, x.dtype)
    if out_routes is None:
        out_routes = routes
    else:
        check_tensor("out_routes", out_routes, 2)
        check_shape("out_routes", out_routes, (num_routes, length), "(K, L)")
    native = resolve(x) == "native"
    for name, table, size in (("routes", routes, pixels), ("out_routes", out_routes, num_out)):
        if table.dtype != torch.int32:
            raise TypeError(f"{name} must be an int32 table, got {table.dtype}")
        check_device("x", x, **{name: table})
        if not native:  # the compiled kernels check it themselves
            check_route_range(name, table, size)

    A, dt_weight, dt_bias, D = library.parameter_dtype(x.dtype, A, dt_weight, dt_bias, D)
    if not native:
        y = selective_scan_2d_reference(
            x,
            x_dbl,
            routes,
            A,
            dt_weight,
            dt_bias,
            D,
            out_routes=out_routes,
            num_out=num_out,
            merge=merge,
            scan=selective_scan_chunked,
        )
        return y.to(out_dtype)
    x, x_dbl, routes, out_routes, A, dt_weight, dt_bias = (
        t.contiguous() for t in (x, x_dbl, routes, out_routes, A, dt_weight, dt_bias)
    )
    D = None if D is None else D.contiguous()
    return torch.ops.mmvssm.selective_scan_2d(
        x, x_dbl, routes, out_routes, A, dt_weight, dt_bias, D, num_out, merge == "sum", out_dtype
    )[0]


def check_route_range(name: str, table: Tensor, size: int) -> None:
    """Raise unless all entries of a route table lie in ``[-1, size)``."""
    low, high = (int(v) for v in table.aminmax())
    if low < -1 or high >= size:
        raise ValueError(
            f"{name} must hold entries from -1 to {size - 1}, got entries from {low} to {high}"
        )
