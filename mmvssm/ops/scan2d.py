"""The selective scan along routes over a map."""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import resolve
from .checks import (
    check_device,
    check_float,
    check_out_dtype,
    check_parameter,
    check_positive,
    check_range,
    check_shape,
    check_table,
    check_tensor,
)
from .precision import autocast_enabled, cast_parameters, promote
from .reference import selective_scan_2d_reference, selective_scan_chunked
from .route_set import IN_RANGE, RouteSet, is_abstract
from .tracers import between_graphs, compiling

MERGES = ("sum", "none")


@between_graphs
def selective_scan_2d(
    x: Tensor,
    x_dbl: Tensor,
    routes: RouteSet | Tensor,
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

    The scan reads ``x`` and the projections through the route table and writes through it (or
    through ``out_routes``): nothing is flipped, transposed or copied. Step sizes are
    ``softplus(dt_weight @ dt + dt_bias)``. A route entry of -1 is a zero token: the state decays
    and nothing is read or written. If a pixel is visited several times, its outputs are added.

    See :mod:`mmvssm.ops.reference` for the definition and its sources, and
    :mod:`mmvssm.ops.routes` for routes. State, decay and sums are float32 for any input but
    float64, for which they are float64.

    Args:
        x: Map of ``P`` pixels ``(Bt, P, D)``, or one map per route ``(Bt, P, K, D)``; float32,
            float16, bfloat16 or float64.
        x_dbl: Projections ``(Bt, P, K, R + 2N)``, or shared by the routes ``(Bt, P, 1, R + 2N)``;
            the last axis holds the dt rank, B and C in this order. Dtype of ``x``.
        routes: A :class:`RouteSet`, which was checked when it was made; or an int32 table
            ``(K, L)`` with entries in ``[-1, P)``, which is checked on every call (this
            synchronises with a GPU).
        A: Negative decay rates ``(K*D, N)``.
        dt_weight: Step projection ``(K, D, R)``.
        dt_bias: Step bias ``(K, D)``.
        D: Skip weights ``(K*D,)``.
        out_routes: The row written at each step, int32 ``(K, L)`` with entries in
            ``[-1, num_out)``; None for ``routes``. Only if ``routes`` is a table.
        num_out: Number of output rows Q; None for ``P``. Only if ``routes`` is a table.
        merge: ``'sum'`` adds the routes, ``'none'`` keeps them separate.
        out_dtype: None for the dtype of ``x``, or ``torch.float32``.

    Returns:
        ``(Bt, Q, D)`` for ``'sum'``, ``(Bt, Q, K, D)`` for ``'none'``.

    Raises:
        TypeError: If an argument is not a tensor or has a wrong dtype.
        ValueError: If a shape, device, route entry or option is wrong, or L, N, K or R is zero.
    """
    check_tensor("x", x, (3, 4))
    check_tensor("x_dbl", x_dbl, 4)
    check_tensor("A", A, 2)
    check_tensor("dt_weight", dt_weight, 3)
    check_tensor("dt_bias", dt_bias, 2)
    batch, pixels, channels = x.shape[0], x.shape[1], x.shape[-1]
    check_positive(P=pixels, D=channels)
    if not isinstance(routes, RouteSet):
        routes = _set_of_tables(routes, out_routes, pixels, num_out)
    elif out_routes is not None or num_out is not None:
        raise ValueError(
            "out_routes and num_out must be None if routes is a RouteSet, which defines both"
        )
    elif routes.num_pixels != pixels:
        raise ValueError(
            f"routes must be over the {pixels} pixels of x, got a RouteSet over {routes.num_pixels}"
        )
    num_routes, d_state, dt_rank = routes.num_routes, A.shape[1], dt_weight.shape[2]
    check_positive(N=d_state, R=dt_rank)
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
    if autocast_enabled(x.device.type):
        x, x_dbl = promote(x, x_dbl)
    check_float("x", x, x_dbl=x_dbl)
    check_device("x", x, A=A, dt_weight=dt_weight, dt_bias=dt_bias, D=D, routes=routes.read)
    out_dtype = check_out_dtype(out_dtype, x.dtype)

    A, dt_weight, dt_bias, D = cast_parameters(x.dtype, A, dt_weight, dt_bias, D)
    is_torch = resolve(x) == "torch"
    if is_torch and not compiling():
        y = selective_scan_2d_reference(
            x,
            x_dbl,
            routes.read,
            A,
            dt_weight,
            dt_bias,
            D,
            out_routes=routes.out,
            num_out=routes.num_out,
            merge=merge,
            scan=selective_scan_chunked,
        )
        return y.to(out_dtype)
    x, x_dbl, A, dt_weight, dt_bias = (t.contiguous() for t in (x, x_dbl, A, dt_weight, dt_bias))
    op = (
        torch.ops.mmvssm.selective_scan_2d_torch if is_torch else torch.ops.mmvssm.selective_scan_2d
    )
    return op(
        x,
        x_dbl,
        routes.read.contiguous(),
        routes.out.contiguous(),
        A,
        dt_weight,
        dt_bias,
        None if D is None else D.contiguous(),
        routes.num_out,
        merge == "sum",
        out_dtype,
        False,
        routes.facts,
    )[0]


def _set_of_tables(
    routes: Tensor, out_routes: Tensor | None, pixels: int, num_out: int | None
) -> RouteSet:
    """Check plain tables for one call and make a set of them."""
    check_table("routes", routes)
    if is_abstract(routes):  # the kernels check them when the graph runs
        return RouteSet.of_tables(routes, out_routes, num_pixels=pixels, num_out=num_out)
    tables = RouteSet.of_tables(
        routes, out_routes, num_pixels=pixels, num_out=num_out, facts=IN_RANGE
    )
    check_range("routes", tables.read, pixels)
    if out_routes is not None or tables.num_out != pixels:
        check_range("out_routes", tables.out, tables.num_out)
    return tables
