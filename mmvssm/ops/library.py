"""``torch.ops.mmvssm.*``: schemas, shapes without data, autograd, autocast and FLOP formulas.

The kernels themselves come from the compiled extension ``mmvssm._vssm_ext``, which registers its
CPU and CUDA functions under these schemas when it is loaded (``ops/csrc/binding.cpp``).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils import flop_counter

from .reference import compute_dtype

# Steps between two saved states; kChunk of ops/csrc/common/scan_common.h.
CHUNK = 64

_library = torch.library.Library("mmvssm", "DEF")
# Says that torch.compile may rely on the ops; torch 2.1 does not ask.
_tag = getattr(torch.Tag, "pt2_compliant_tag", None)
_tags = {} if _tag is None else {"tags": (_tag,)}
for _schema in (
    "selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D=None,"
    " Tensor? delta_bias=None, bool delta_softplus=False, ScalarType? out_dtype=None,"
    " bool save_states=False) -> (Tensor y, Tensor last_state, Tensor states)",
    "selective_scan_backward(Tensor dy, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C,"
    " Tensor? D, Tensor? delta_bias, Tensor states, bool delta_softplus)"
    " -> (Tensor du, Tensor ddelta, Tensor dA, Tensor dB, Tensor dC, Tensor dD,"
    " Tensor ddelta_bias)",
    "selective_scan_2d(Tensor x, Tensor x_dbl, Tensor routes, Tensor out_routes, Tensor A,"
    " Tensor dt_weight, Tensor dt_bias, Tensor? D, SymInt num_out, bool merge,"
    " ScalarType? out_dtype=None, bool save_states=False) -> (Tensor y, Tensor states)",
    "selective_scan_2d_backward(Tensor dy, Tensor x, Tensor x_dbl, Tensor routes,"
    " Tensor out_routes, Tensor A, Tensor dt_weight, Tensor dt_bias, Tensor? D, Tensor states,"
    " bool merge) -> (Tensor dx, Tensor dx_dbl, Tensor dA, Tensor ddt_weight, Tensor ddt_bias,"
    " Tensor dD)",
):
    _library.define(_schema, **_tags)


def _empty_states(x: Tensor, routes: int, channels: int, d_state: int, length: int, save: bool):
    saved = (length - 1) // CHUNK if save else 0
    shape = (x.shape[0], routes, saved, d_state, channels)
    return x.new_empty(shape, dtype=compute_dtype(x))


def _selective_scan_meta(
    u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=False, out_dtype=None, save=False
):
    routes, channels, d_state = B.shape[1], u.shape[1] // B.shape[1], A.shape[1]
    last_state = u.new_empty((u.shape[0], *A.shape), dtype=compute_dtype(u))
    states = _empty_states(u, routes, channels, d_state, u.shape[2], save)
    return torch.empty_like(u, dtype=out_dtype or u.dtype), last_state, states


def _selective_scan_backward_meta(dy, u, delta, A, B, C, D, delta_bias, states, delta_softplus):
    empty = A.new_empty(0)
    dD = empty if D is None else torch.empty_like(D)
    dbias = empty.clone() if delta_bias is None else torch.empty_like(delta_bias)
    return (*(torch.empty_like(t) for t in (u, delta, A, B, C)), dD, dbias)


def _selective_scan_2d_meta(
    x,
    x_dbl,
    routes,
    out_routes,
    A,
    dt_weight,
    dt_bias,
    D,
    num_out,
    merge,
    out_dtype=None,
    save=False,
):
    num_routes, channels, _ = dt_weight.shape
    rows = (channels,) if merge else (num_routes, channels)
    y = x.new_empty((x.shape[0], num_out, *rows), dtype=out_dtype or x.dtype)
    return y, _empty_states(x, num_routes, channels, A.shape[1], routes.shape[1], save)


def _selective_scan_2d_backward_meta(
    dy, x, x_dbl, routes, out_routes, A, dt_weight, dt_bias, D, states, merge
):
    dD = A.new_empty(0) if D is None else torch.empty_like(D)
    return (*(torch.empty_like(t) for t in (x, x_dbl, A, dt_weight, dt_bias)), dD)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, delta_bias, delta_softplus, out_dtype):
        with torch._C._AutoDispatchBelowAutograd():
            y, last_state, states = torch.ops.mmvssm.selective_scan(
                u, delta, A, B, C, D, delta_bias, delta_softplus, out_dtype, True
            )
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, states)
        ctx.delta_softplus = delta_softplus
        ctx.mark_non_differentiable(last_state, states)
        return y, last_state, states

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, *_):
        saved = ctx.saved_tensors  # a checkpoint lets them be read once only
        grads = torch.ops.mmvssm.selective_scan_backward(
            dy.contiguous(), *saved, ctx.delta_softplus
        )
        return (*(None if t is None else g for g, t in zip(grads, saved)), None, None)


class _SelectiveScan2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x, x_dbl, routes, out_routes, A, dt_weight, dt_bias, D, num_out, merge, out_dtype
    ):
        with torch._C._AutoDispatchBelowAutograd():
            y, states = torch.ops.mmvssm.selective_scan_2d(
                x,
                x_dbl,
                routes,
                out_routes,
                A,
                dt_weight,
                dt_bias,
                D,
                num_out,
                merge,
                out_dtype,
                True,
            )
        ctx.save_for_backward(x, x_dbl, routes, out_routes, A, dt_weight, dt_bias, D, states)
        ctx.merge = merge
        ctx.mark_non_differentiable(states)
        return y, states

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, _):
        saved = ctx.saved_tensors  # a checkpoint lets them be read once only
        dx, dx_dbl, dA, ddt_weight, ddt_bias, dD = torch.ops.mmvssm.selective_scan_2d_backward(
            dy.contiguous(), *saved, ctx.merge
        )
        dD = None if saved[7] is None else dD
        return dx, dx_dbl, None, None, dA, ddt_weight, ddt_bias, dD, None, None, None


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _selective_scan_autograd(
    u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=False, out_dtype=None, save=False
):
    if _needs_grad(u, delta, A, B, C, D, delta_bias):
        return _SelectiveScan.apply(u, delta, A, B, C, D, delta_bias, delta_softplus, out_dtype)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.mmvssm.selective_scan(
            u, delta, A, B, C, D, delta_bias, delta_softplus, out_dtype, save
        )


def _selective_scan_2d_autograd(
    x,
    x_dbl,
    routes,
    out_routes,
    A,
    dt_weight,
    dt_bias,
    D,
    num_out,
    merge,
    out_dtype=None,
    save=False,
):
    if _needs_grad(x, x_dbl, A, dt_weight, dt_bias, D):
        return _SelectiveScan2d.apply(
            x, x_dbl, routes, out_routes, A, dt_weight, dt_bias, D, num_out, merge, out_dtype
        )
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.mmvssm.selective_scan_2d(
            x, x_dbl, routes, out_routes, A, dt_weight, dt_bias, D, num_out, merge, out_dtype, save
        )


def promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast tensors to the widest of their dtypes: autocast never narrows what the scan is given."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(t.to(dtype) for t in tensors)


def parameter_dtype(dtype: torch.dtype, *parameters: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast A, D, step weights and biases to the precision of the recurrence."""
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    return tuple(None if p is None else p.to(wanted) for p in parameters)


def _autocast(op, key: str, activations: tuple[int, ...], parameters: tuple[int, ...]):
    """The autocast kernel of ``op``; the arguments that it casts are given by their places."""
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def run(*args):
        args = list(args)
        for i, tensor in zip(activations, promote(*(args[i] for i in activations))):
            args[i] = tensor
        given = [i for i in parameters if i < len(args)]  # defaults at the end are left out
        dtype = args[activations[0]].dtype
        for i, tensor in zip(given, parameter_dtype(dtype, *(args[i] for i in given))):
            args[i] = tensor
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return op(*args)

    return run


_library.impl("selective_scan", _selective_scan_meta, "Meta")
_library.impl("selective_scan_backward", _selective_scan_backward_meta, "Meta")
_library.impl("selective_scan_2d", _selective_scan_2d_meta, "Meta")
_library.impl("selective_scan_2d_backward", _selective_scan_2d_backward_meta, "Meta")
_library.impl("selective_scan", _selective_scan_autograd, "Autograd")
_library.impl("selective_scan_2d", _selective_scan_2d_autograd, "Autograd")
for _key in ("AutocastCPU", "AutocastCUDA"):
    _op = torch.ops.mmvssm.selective_scan  # u, delta, A, B, C, D, delta_bias
    _library.impl("selective_scan", _autocast(_op, _key, (0, 1, 3, 4), (2, 5, 6)), _key)
    _op = torch.ops.mmvssm.selective_scan_2d  # x, x_dbl, tables, A, dt_weight, dt_bias, D
    _library.impl("selective_scan_2d", _autocast(_op, _key, (0, 1), (4, 5, 6, 7)), _key)


def scan_flops(batch: int, rows: int, length: int, d_state: int, has_D: bool = True) -> int:
    """FLOPs of a selective scan in the convention of the papers: ``9 N + 1`` per row and step.

    Args:
        batch: Batch size.
        rows: Scanned rows per image (routes times channels).
        length: Steps.
        d_state: State size N.
        has_D: Whether the skip term is added.
    """
    return batch * rows * length * (9 * d_state + int(has_D))


if hasattr(flop_counter, "register_flop_formula"):  # torch >= 2.2

    @flop_counter.register_flop_formula(torch.ops.mmvssm.selective_scan)
    def _selective_scan_flops(u, delta, A, B, C, D=None, *args, out_shape=None, **kwargs) -> int:
        return scan_flops(u[0], u[1], u[2], A[1], D is not None)

    @flop_counter.register_flop_formula(torch.ops.mmvssm.selective_scan_2d)
    def _selective_scan_2d_flops(
        x, x_dbl, routes, out_routes, A, dt_weight, dt_bias, D=None, *args, out_shape=None, **kwargs
    ) -> int:
        num_routes, channels, dt_rank = dt_weight
        projection = 2 * x[0] * routes[1] * num_routes * channels * dt_rank
        return projection + scan_flops(x[0], A[0], routes[1], A[1], D is not None)
