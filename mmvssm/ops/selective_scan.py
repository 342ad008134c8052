"""The 1-D selective scan, a drop-in replacement for the functions of Mamba and VMamba."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .backend import resolve
from .checks import (
    check_device,
    check_flag,
    check_float,
    check_out_dtype,
    check_parameter,
    check_positive,
    check_shape,
    check_tensor,
)
from .precision import autocast_enabled, cast_parameters, compute_dtype, promote
from .reference import selective_scan_chunked
from .tracers import between_graphs, compiling


@between_graphs
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan sequences of ``K`` groups of ``D`` channels each.

    See :mod:`mmvssm.ops.reference` for the recurrence and its sources. State, decay and sums are
    float32 for any input but float64, for which they are float64.

    Args:
        u: Input ``(Bt, K*D, L)``; float32, float16, bfloat16 or float64.
        delta: Step sizes ``(Bt, G, L)`` with ``G`` dividing ``K*D``; row ``r`` of ``u`` uses row
            ``r // (K*D // G)``. Dtype of ``u``.
        A: Negative decay rates ``(K*D, N)``.
        B: Input maps ``(Bt, K, N, L)``, or ``(Bt, N, L)`` for one group, in the dtype of ``u``. Or
            ``(K*D, N)`` if they are the same at every step, which needs as much memory as one group
            per row.
        C: Output maps in one of these forms, with as many groups as ``B`` if both have an axis L.
        D: Skip weights ``(K*D,)``.
        z: Gate ``(Bt, K*D, L)``. The output is multiplied by ``silu(z)`` in the precision of the
            sums, then rounded to ``out_dtype``.
        delta_bias: Bias ``(G,)`` added to ``delta``.
        delta_softplus: Whether step sizes are ``softplus(delta + delta_bias)``.
        return_last_state: Whether to return the state after the last step as well.
        out_dtype: None for the dtype of ``u``, or ``torch.float32``.

    Returns:
        ``y (Bt, K*D, L)``, or ``(y, last_state)`` with ``last_state (Bt, K*D, N)``, which has no
        gradient.

    Raises:
        TypeError: If an argument is not a tensor or has a wrong dtype.
        ValueError: If a shape or device is wrong, or L, N or K is zero.
    """
    check_flag("delta_softplus", delta_softplus)
    check_flag("return_last_state", return_last_state)
    check_tensor("u", u, 3)
    check_tensor("delta", delta, 3)
    check_tensor("A", A, 2)
    check_tensor("B", B, (2, 3, 4))
    check_tensor("C", C, (2, 3, 4) if B.dim() == 2 else (2, B.dim()))
    B, C = (t[:, None] if t.dim() == 3 else t for t in (B, C))
    maps = {name: t for name, t in (("B", B), ("C", C)) if t.dim() == 4}
    constants = {name: t for name, t in (("B", B), ("C", C)) if t.dim() == 2}
    (batch, rows, length), d_state = u.shape, A.shape[1]
    check_positive(rows=rows, L=length, N=d_state)
    groups = next((t.shape[1] for t in maps.values()), 1)
    check_positive(K=groups)
    if rows % groups:
        raise ValueError(
            f"{next(iter(maps))} must have a number of groups that divides the {rows} rows of u,"
            f" got {groups}"
        )
    delta_rows = delta.shape[1]
    if delta_rows < 1 or rows % delta_rows:
        raise ValueError(
            f"delta must have a number of rows that divides the {rows} rows of u, got {delta_rows}"
        )
    check_shape("delta", delta, (batch, delta_rows, length), "(Bt, G, L)")
    check_shape("A", A, (rows, d_state), "(K*D, N)")
    for name, value in maps.items():
        check_shape(name, value, (batch, groups, d_state, length), "(Bt, K, N, L)")
    for name, value in constants.items():
        check_shape(name, value, (rows, d_state), "(K*D, N)")
        check_parameter(name, value)
    optional = {"D": (D, rows), "delta_bias": (delta_bias, delta_rows)}
    for name, (value, size) in optional.items():
        if value is not None:
            check_tensor(name, value, 1)
            check_shape(name, value, (size,), "(K*D,)" if name == "D" else "(G,)")
            check_parameter(name, value)
    if z is not None:
        check_tensor("z", z, 3)
        check_shape("z", z, (batch, rows, length), "(Bt, K*D, L)")
        check_parameter("z", z)
    check_parameter("A", A)
    if autocast_enabled(u.device.type):
        u, delta, *promoted = promote(u, delta, *maps.values())
        maps = dict(zip(maps, promoted))
    check_float("u", u, delta=delta, **maps)
    check_device("u", u, A=A, D=D, z=z, delta_bias=delta_bias, **constants)
    out_dtype, wide = check_out_dtype(out_dtype, u.dtype), compute_dtype(u.dtype)

    # Constant B or C are parameters, which keep their precision: expand to one group per row.
    if constants:
        u, delta = u.to(wide), delta.to(wide)
        spread = {name: t[None, :, :, None] for name, t in constants.items()}
        spread |= {n: t.to(wide).repeat_interleave(rows // groups, 1) for n, t in maps.items()}
        B, C = (spread[name].to(wide).expand(batch, -1, -1, length) for name in ("B", "C"))
    else:
        B, C = maps["B"], maps["C"]
    if delta_rows != rows:
        delta = delta.repeat_interleave(rows // delta_rows, dim=1)
        if delta_bias is not None:
            delta_bias = delta_bias.repeat_interleave(rows // delta_rows)
    A, D, delta_bias = cast_parameters(u.dtype, A, D, delta_bias)
    is_torch = resolve(u) == "torch"
    if is_torch and not compiling():
        y, last_state = selective_scan_chunked(u, delta, A, B, C, D, delta_bias, delta_softplus)
        last_state = last_state.detach()
    else:
        u, delta, A, B, C = (t.contiguous() for t in (u, delta, A, B, C))
        D, delta_bias = (None if t is None else t.contiguous() for t in (D, delta_bias))
        op = torch.ops.mmvssm.selective_scan_torch if is_torch else torch.ops.mmvssm.selective_scan
        # the op rounds to its input's dtype, which constant maps have made wide
        op_dtype = wide if constants or z is not None else out_dtype
        y, last_state, _ = op(u, delta, A, B, C, D, delta_bias, delta_softplus, op_dtype)
    if z is not None:
        y = y * F.silu(z.to(wide))
    y = y.to(out_dtype)
    return (y, last_state) if return_last_state else y
