"""The four registered ops on a device: check, allocate, describe the tensors to the kernels.

This is the Python counterpart of ``ops/csrc/scan_ops.cpp`` and ``scan_cuda.cpp``. The public
functions have already checked their arguments with more detailed messages; these checks keep a
direct caller of ``torch.ops.mmvssm.*`` from reading outside of a tensor.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from ..checks import check_out_dtype, check_positive, check_range, check_shape, check_tensor
from ..library import (
    CHUNK,
    SCAN,
    SCAN_2D,
    SCAN_2D_BACKWARD,
    SCAN_BACKWARD,
    gradient_results,
    scan_2d_results,
    scan_results,
)
from ..route_facts import RouteFacts

# DType of csrc/common/scan_common.h.
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
# Kernels index blocks, and elements within an image, in 32 bits, and may overrun the end by a block
# of threads or a tile.
_MOST = 2**31 - 1 - 1024


def _check(name: str, t: Tensor | None, like: Tensor, dtype: torch.dtype, shape, layout: str):
    """Raise unless a tensor is None or has the shape, dtype, device and layout of the kernels."""
    if t is None:
        return
    check_tensor(name, t, len(shape))
    check_shape(name, t, shape, layout)
    if t.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {t.dtype}")
    if t.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {t.device}")
    if not t.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {t.stride()}")


def _check_input(name: str, t: Tensor) -> None:
    if t.dtype not in _DTYPES:
        raise TypeError(
            f"{name}: the CUDA scan takes float32, float16 or bfloat16, got {t.dtype}; choose"
            " backend('torch') for it"
        )
    _check(name, t, t, t.dtype, t.shape, "")


def _check_counts(**counts: int) -> None:
    for what, count in counts.items():
        if count > _MOST:
            words = what.replace("_", " ")
            raise ValueError(f"the CUDA scan takes at most {_MOST} {words}, got {count}")


def _check_states(states: Tensor, A: Tensor, batch: int, routes: int, length: int, channels: int):
    shape = (batch, routes, (length - 1) // CHUNK, A.shape[1], channels)
    _check("states", states, A, torch.float32, shape, "(Bt, K, S, N, D)")


def _check_dy(dy: Tensor, like: Tensor, shape, layout: str) -> None:
    dtype = dy.dtype if dy.dtype == like.dtype else torch.float32
    _check("dy", dy, like, dtype, shape, layout)


def _sequences(a: SimpleNamespace) -> dict[str, object]:
    """Check the inputs that both passes of a 1-D scan share; return fields of ``Scan1dArgs``."""
    check_tensor("u", a.u, 3)
    check_tensor("A", a.A, 2)
    check_tensor("B", a.B, 4)
    (batch, rows, length), d_state, groups = a.u.shape, a.A.shape[1], a.B.shape[1]
    check_positive(rows=rows, L=length, N=d_state, K=groups)
    if rows % groups:
        raise ValueError(f"B has {groups} groups, which do not divide the {rows} rows of u")
    _check_input("u", a.u)
    dtype, wide = a.u.dtype, torch.float32
    _check("delta", a.delta, a.u, dtype, (batch, rows, length), "(Bt, K*D, L)")
    _check("A", a.A, a.u, wide, (rows, d_state), "(K*D, N)")
    for name in ("B", "C"):
        shape = (batch, groups, d_state, length)
        _check(name, getattr(a, name), a.u, dtype, shape, "(Bt, K, N, L)")
    _check("D", a.D, a.u, wide, (rows,), "(K*D,)")
    _check("delta_bias", a.delta_bias, a.u, wide, (rows,), "(K*D,)")
    _check_counts(
        blocks=batch * rows * -(-length // CHUNK),
        parameters_in_A=rows * d_state,
        elements_of_u_in_an_image=rows * length,
        elements_of_B_in_an_image=groups * d_state * length,
    )
    sizes = dict(batch=batch, num_routes=groups, channels=rows // groups, d_state=d_state)
    given = dict(A=a.A, D=a.D, bias=a.delta_bias, u=a.u, delta=a.delta, B=a.B, C=a.C)
    numbers = dict(length=length, in_type=_DTYPES[dtype], softplus=a.delta_softplus)
    return {**sizes, **numbers, **given}


def _maps(a: SimpleNamespace, num_out: int) -> dict[str, object]:
    """Check the inputs that both passes of a 2-D scan share; return fields of ``Scan2dArgs``."""
    check_tensor("x", a.x, (3, 4))
    check_tensor("x_dbl", a.x_dbl, 4)
    check_tensor("routes", a.routes, 2)
    check_tensor("A", a.A, 2)
    check_tensor("dt_weight", a.dt_weight, 3)
    batch, pixels, channels = a.x.shape[0], a.x.shape[1], a.x.shape[-1]
    (routes, length), d_state, dt_rank = a.routes.shape, a.A.shape[1], a.dt_weight.shape[2]
    check_positive(P=pixels, D=channels, K=routes, L=length, N=d_state, R=dt_rank, num_out=num_out)
    _check_input("x", a.x)
    dtype, wide, rows = a.x.dtype, torch.float32, routes * channels
    if a.x.dim() == 4:
        check_shape("x", a.x, (batch, pixels, routes, channels), "(Bt, P, K, D)")
    shared = a.x_dbl.shape[2] == 1
    width = dt_rank + 2 * d_state
    shape = (batch, pixels, 1 if shared else routes, width)
    _check("x_dbl", a.x_dbl, a.x, dtype, shape, "(Bt, P, K or 1, R + 2N)")
    _check("A", a.A, a.x, wide, (rows, d_state), "(K*D, N)")
    _check("dt_weight", a.dt_weight, a.x, wide, (routes, channels, dt_rank), "(K, D, R)")
    _check("dt_bias", a.dt_bias, a.x, wide, (routes, channels), "(K, D)")
    _check("D", a.D, a.x, wide, (rows,), "(K*D,)")
    for name in ("routes", "out_routes"):
        _check(name, getattr(a, name), a.x, torch.int32, (routes, length), "(K, L)")
    if not a.route_facts & RouteFacts.CHECKED:
        check_range("routes", a.routes, pixels)
        check_range("out_routes", a.out_routes, num_out)
    _check_counts(
        blocks=batch * rows * -(-length // CHUNK),
        parameters_in_A=rows * d_state,
        elements_of_x_in_an_image_for_all_routes=pixels * rows,
        elements_of_the_output_in_an_image_for_all_routes=num_out * rows,
        elements_of_x_dbl_in_an_image=pixels * routes * width,
        route_entries=routes * length,
        steps_of_a_route_times_channels=length * channels,
    )
    return dict(
        batch=batch,
        num_routes=routes,
        channels=channels,
        d_state=d_state,
        length=length,
        in_type=_DTYPES[dtype],
        pixels=pixels,
        out_rows=num_out,
        dt_rank=dt_rank,
        x_per_route=a.x.dim() == 4,
        shared_projection=shared,
        merge=a.merge,
        facts=RouteFacts.reliable(a.route_facts),
        A=a.A,
        D=a.D,
        bias=a.dt_bias,
        x=a.x,
        x_dbl=a.x_dbl,
        routes=a.routes,
        out_routes=a.out_routes,
        dt_weight=a.dt_weight,
    )


def _scan(device, *args):
    a = SimpleNamespace(**SCAN.bind(args))
    fields = _sequences(a)
    check_out_dtype(a.out_dtype, a.u.dtype)
    y, last_state, states = results = scan_results(*args)
    if y.shape[0]:
        written = dict(y_type=_DTYPES[y.dtype], y=y, last_state=last_state, states=states)
        device.run("scan_1d_forward", "Scan1dArgs", {**fields, **written})
    return results


def _scan_2d(device, *args):
    a = SimpleNamespace(**SCAN_2D.bind(args))
    fields = _maps(a, a.num_out)
    check_out_dtype(a.out_dtype, a.x.dtype)
    y, states = results = scan_2d_results(*args)
    if y.shape[0]:
        written = dict(y_type=_DTYPES[y.dtype], y=y, states=states)
        device.run("scan_2d_forward", "Scan2dArgs", {**fields, **written})
    return results


def _scan_backward(device, *args):
    a = SimpleNamespace(**SCAN_BACKWARD.bind(args))
    fields = _sequences(a)
    batch, rows, length = a.u.shape
    _check_dy(a.dy, a.u, a.u.shape, "(Bt, K*D, L)")
    groups = a.B.shape[1]
    _check_states(a.states, a.A, batch, groups, length, rows // groups)
    results = gradient_results(SCAN_BACKWARD)(*args)
    names = ("du", "ddelta", "dA", "dB", "dC", "dD", "dbias")
    fields.update(y_type=_DTYPES[a.dy.dtype], dy=a.dy, states=a.states)
    return _gradients(device, "scan_1d_backward", "Scan1dArgs", fields, names, results)


def _scan_2d_backward(device, *args):
    a = SimpleNamespace(**SCAN_2D_BACKWARD.bind(args))
    check_tensor("dy", a.dy, 3 if a.merge else 4)
    num_out = a.dy.shape[1]
    fields = _maps(a, num_out)
    routes, channels = a.dt_bias.shape
    shape = (a.x.shape[0], num_out, *((channels,) if a.merge else (routes, channels)))
    _check_dy(a.dy, a.x, shape, "(Bt, Q, D)" if a.merge else "(Bt, Q, K, D)")
    _check_states(a.states, a.A, a.x.shape[0], routes, a.routes.shape[1], channels)
    results = gradient_results(SCAN_2D_BACKWARD)(*args)
    names = ("dx", "dx_dbl", "dA", "ddt_weight", "dbias", "dD")
    fields.update(y_type=_DTYPES[a.dy.dtype], dy=a.dy, states=a.states)
    return _gradients(device, "scan_2d_backward", "Scan2dArgs", fields, names, results)


def _gradients(device, scan: str, args: str, fields: dict, names, results):
    if fields["batch"]:
        device.run(scan, args, {**fields, **dict(zip(names, results))})
        return results
    return tuple(t.zero_() for t in results)


#: Implementation of each registered op; the device is its first argument.
IMPLEMENTATIONS = {
    SCAN.name: _scan,
    SCAN_BACKWARD.name: _scan_backward,
    SCAN_2D.name: _scan_2d,
    SCAN_2D_BACKWARD.name: _scan_2d_backward,
}
