"""``torch.ops.mmvssm.*``: schemas, shapes without data, autograd, autocast and FLOP formulas.

The kernels themselves come from the compiled extension ``mmvssm._vssm_ext``, which registers its
CPU and CUDA functions under these schemas when it is loaded (``ops/csrc/binding.cpp``).

Each scan has a twin with the same arguments, ``NAME_torch``: the PyTorch scan on any device, as one
node of a graph. Without it, ``torch.compile`` would unroll the loops for one size of the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils import flop_counter

from .precision import cast_parameters, compute_dtype, promote
from .reference import (
    gated_sum_reference,
    normalized_means_reference,
    selective_scan_2d_reference,
    selective_scan_chunked,
)

# Steps between two saved states; must equal kChunk of ops/csrc/common/scan_common.h.
CHUNK = 64

_library = torch.library.Library("mmvssm", "DEF")
# Tells torch.compile that it may rely on the ops; torch 2.1 has no such tag.
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
    # route_facts: see mmvssm/ops/route_facts.py
    "selective_scan_2d(Tensor x, Tensor x_dbl, Tensor routes, Tensor out_routes, Tensor A,"
    " Tensor dt_weight, Tensor dt_bias, Tensor? D, SymInt num_out, bool merge,"
    " ScalarType? out_dtype=None, bool save_states=False, int route_facts=0)"
    " -> (Tensor y, Tensor states)",
    "selective_scan_2d_backward(Tensor dy, Tensor x, Tensor x_dbl, Tensor routes,"
    " Tensor out_routes, Tensor A, Tensor dt_weight, Tensor dt_bias, Tensor? D, Tensor states,"
    " bool merge, int route_facts=0) -> (Tensor dx, Tensor dx_dbl, Tensor dA, Tensor ddt_weight,"
    " Tensor ddt_bias, Tensor dD)",
):
    _library.define(_schema, **_tags)
    _library.define(_schema.replace("(", "_torch(", 1), **_tags)
for _schema in (
    "normalized_means(Tensor x, Tensor? scale, float eps) -> Tensor means",
    "normalized_means_backward(Tensor dy, Tensor x, Tensor? scale, float eps)"
    " -> (Tensor dx, Tensor dscale)",
    "gated_sum(Tensor x, Tensor gates, Tensor? scale) -> Tensor y",
    "gated_sum_backward(Tensor dy, Tensor x, Tensor gates, Tensor? scale)"
    " -> (Tensor dx, Tensor dgates, Tensor dscale)",
):
    _library.define(_schema, **_tags)


class _Op:
    """A registered op and the names in its schema, the only list of its arguments."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.run = getattr(torch.ops.mmvssm, name).default
        schema = self.run._schema
        self.arguments = tuple(a.name for a in schema.arguments)
        self.results = tuple(r.name for r in schema.returns)
        # For a backward op: the arguments whose gradients are the results.
        self.gradients = tuple(name.removeprefix("d") for name in self.results)
        self._defaults = tuple(a.default_value for a in schema.arguments)

    def bind(self, args: Sequence, kwargs: dict | None = None) -> dict[str, object]:
        """Return all arguments of a call by name; the dispatcher omits trailing defaults."""
        values = dict(zip(self.arguments, (*args, *self._defaults[len(args) :])))
        return {**values, **kwargs} if kwargs else values

    def __call__(self, values: dict[str, object]):
        """Run the op on its arguments, taken from ``values``; return a tuple of its results."""
        results = self.run(*[values[name] for name in self.arguments])
        return results if len(self.results) > 1 else (results,)


SCAN, SCAN_BACKWARD = _Op("selective_scan"), _Op("selective_scan_backward")
SCAN_2D, SCAN_2D_BACKWARD = _Op("selective_scan_2d"), _Op("selective_scan_2d_backward")
SCAN_TORCH, SCAN_BACKWARD_TORCH = _Op("selective_scan_torch"), _Op("selective_scan_backward_torch")
SCAN_2D_TORCH = _Op("selective_scan_2d_torch")
SCAN_2D_BACKWARD_TORCH = _Op("selective_scan_2d_backward_torch")
MEANS, MEANS_BACKWARD = _Op("normalized_means"), _Op("normalized_means_backward")
SUM, SUM_BACKWARD = _Op("gated_sum"), _Op("gated_sum_backward")


def _empty_states(x: Tensor, routes: int, channels: int, d_state: int, length: int, save: bool):
    saved = (length - 1) // CHUNK if save else 0
    shape = (x.shape[0], routes, saved, d_state, channels)
    return x.new_empty(shape, dtype=compute_dtype(x.dtype))


def scan_results(*args):
    """Allocate the results of ``selective_scan``."""
    a = SimpleNamespace(**SCAN.bind(args))
    if a.B.shape[1] < 1:
        raise ValueError("B must have at least one group")
    routes, channels, d_state = a.B.shape[1], a.u.shape[1] // a.B.shape[1], a.A.shape[1]
    last_state = a.u.new_empty((a.u.shape[0], *a.A.shape), dtype=compute_dtype(a.u.dtype))
    states = _empty_states(a.u, routes, channels, d_state, a.u.shape[2], a.save_states)
    return torch.empty_like(a.u, dtype=a.out_dtype or a.u.dtype), last_state, states


def scan_2d_results(*args):
    """Allocate the results of ``selective_scan_2d``."""
    a = SimpleNamespace(**SCAN_2D.bind(args))
    num_routes, channels, _ = a.dt_weight.shape
    rows = (channels,) if a.merge else (num_routes, channels)
    y = a.x.new_empty((a.x.shape[0], a.num_out, *rows), dtype=a.out_dtype or a.x.dtype)
    length, d_state = a.routes.shape[1], a.A.shape[1]
    return y, _empty_states(a.x, num_routes, channels, d_state, length, a.save_states)


def normalized_means_results(x: Tensor, scale: Tensor | None, eps: float) -> Tensor:
    """Allocate the result of ``normalized_means``."""
    batch, _, num_routes, channels = x.shape
    return x.new_empty((batch, num_routes, channels), dtype=compute_dtype(x.dtype))


def gated_sum_results(x: Tensor, gates: Tensor, scale: Tensor | None) -> Tensor:
    """Allocate the result of ``gated_sum``."""
    batch, pixels, _, channels = x.shape
    return x.new_empty((batch, pixels, channels), dtype=compute_dtype(x.dtype))


def gradient_results(op: _Op, empty: str = "A"):
    """Return a function that allocates the results of a backward op.

    Each result is like its argument, and empty where the argument is None, with the dtype of the
    argument named ``empty``.
    """

    def run(*args):
        values = op.bind(args)
        given = (values[name] for name in op.gradients)
        return tuple(
            values[empty].new_empty(0) if t is None else torch.empty_like(t) for t in given
        )

    return run


def _without_states(meta):
    """Return the meta function of a PyTorch scan, which saves no states."""

    def run(*args):
        *outputs, states = meta(*args)
        return (*outputs, states.new_empty(0))

    return run


def _define_scan(a: SimpleNamespace) -> tuple[Tensor, Tensor]:
    return selective_scan_chunked(a.u, a.delta, a.A, a.B, a.C, a.D, a.delta_bias, a.delta_softplus)


def _define_scan_2d(a: SimpleNamespace) -> tuple[Tensor]:
    y = selective_scan_2d_reference(
        *(a.x, a.x_dbl, a.routes, a.A, a.dt_weight, a.dt_bias, a.D),
        out_routes=a.out_routes,
        num_out=a.num_out,
        merge="sum" if a.merge else "none",
        scan=selective_scan_chunked,
    )
    return (y,)


def _define_means(a: SimpleNamespace) -> tuple[Tensor]:
    return (normalized_means_reference(a.x, a.scale, a.eps),)


def _define_sum(a: SimpleNamespace) -> tuple[Tensor]:
    return (gated_sum_reference(a.x, a.gates, a.scale),)


def _scan_torch(op: _Op, define):
    """Return the implementation of a scan that runs its PyTorch definition."""

    def run(*args):
        a = SimpleNamespace(**op.bind(args))
        y, *others = define(a)
        dtype = a.out_dtype or getattr(a, op.arguments[0]).dtype
        # y is a view: zero tokens write to an extra row behind the map
        return (*(t.contiguous() for t in (y.to(dtype), *others)), y.new_empty(0))

    return run


def _backward_torch(op: _Op, define):
    """Return the implementation of a backward op that runs the PyTorch scan again."""

    def run(*args):
        values = op.bind(args)
        leaves = {
            name: values[name].detach().requires_grad_()
            for name in op.gradients
            if values[name] is not None
        }
        grads = _differentiate(define, {**values, **leaves}, list(leaves))
        empty = values["A"].new_empty(0)
        return tuple(grads[n].contiguous() if n in grads else empty for n in op.gradients)

    return run


def _differentiable_gradients(op: _Op, values: dict[str, object]) -> dict[str, Tensor]:
    """Return gradients that can be differentiated again, from the PyTorch definition."""
    with torch.enable_grad():
        # views, so that a tensor passed as two arguments gets a gradient for each
        values = {n: v.view_as(v) if isinstance(v, Tensor) else v for n, v in values.items()}
    wanted = [n for n in op.gradients if getattr(values[n], "requires_grad", False)]
    return _differentiate(_DEFINITIONS[op.name], values, wanted, create_graph=True)


def _differentiate(
    define, values: dict[str, Any], names: Sequence[str], create_graph: bool = False
) -> dict[str, Tensor]:
    """Return the gradients of the named arguments; ``values`` must hold ``dy``."""
    dy = values["dy"]
    with torch.enable_grad():
        y = define(SimpleNamespace(num_out=dy.shape[1], **values))[0].to(dy.dtype)
        inputs = [values[name] for name in names]
        grads = torch.autograd.grad(y, inputs, dy, create_graph=create_graph)
    return dict(zip(names, grads))


#: PyTorch definition that each backward op differentiates.
_DEFINITIONS = {
    SCAN_BACKWARD.name: _define_scan,
    SCAN_BACKWARD_TORCH.name: _define_scan,
    SCAN_2D_BACKWARD.name: _define_scan_2d,
    SCAN_2D_BACKWARD_TORCH.name: _define_scan_2d,
    MEANS_BACKWARD.name: _define_means,
    SUM_BACKWARD.name: _define_sum,
}


class _Differentiable(torch.autograd.Function):
    """Autograd function of an op; its backward op takes ``dy``, and inputs and outputs by name.

    The gradient of argument ``a`` is the result ``da`` of the backward op. If the backward pass
    itself is recorded for second derivatives (``create_graph=True``), PyTorch computes it.
    """

    @staticmethod
    def forward(ctx, op: _Op, backward: _Op, *args):
        values = op.bind(args)
        values["save_states"] = True
        with torch._C._AutoDispatchBelowAutograd():
            outputs = op(values)
        values.update(zip(op.results, outputs))
        tensors, others = {}, {}
        for name in backward.arguments[1:]:  # all but dy
            value = values[name]
            (tensors if isinstance(value, Tensor) else others)[name] = value
        ctx.save_for_backward(*tensors.values())
        ctx.tensors, ctx.others = tuple(tensors), others
        ctx.backward_op, ctx.arguments = backward, op.arguments[: len(args)]
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx, dy, *_):
        # Under gradient checkpointing the saved tensors can be read only once.
        values = dict(zip(ctx.tensors, ctx.saved_tensors))
        if torch.is_grad_enabled():
            values = {"dy": dy, **values, **ctx.others}
            grads = _differentiable_gradients(ctx.backward_op, values)
            return None, None, *(grads.get(name) for name in ctx.arguments)
        grads = ctx.backward_op({"dy": dy.contiguous(), **values, **ctx.others})
        grads = {n: g for n, g in zip(ctx.backward_op.gradients, grads) if n in values}
        return None, None, *(grads.get(name) for name in ctx.arguments)


def _autograd(op: _Op, backward: _Op):
    """Return the autograd kernel of an op."""

    def run(*args):
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            results = _Differentiable.apply(op, backward, *args)
            return results if len(op.results) > 1 else results[0]
        with torch._C._AutoDispatchBelowAutograd():
            return op.run(*args)

    return run


def _autocast(op: _Op, key: str, activations: Sequence[str], parameters: Sequence[str]):
    """Return the autocast kernel of a scan, which casts the named arguments."""
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def run(*args):
        values = op.bind(args)
        values.update(zip(activations, promote(*(values[n] for n in activations))))
        dtype = values[activations[0]].dtype
        values.update(zip(parameters, cast_parameters(dtype, *(values[n] for n in parameters))))
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return op(values)

    return run


_CASTS = ("u", "delta", "B", "C"), ("A", "D", "delta_bias")
_CASTS_2D = ("x", "x_dbl"), ("A", "dt_weight", "dt_bias", "D")
for _op, _backward, _results, _casts in (
    (SCAN, SCAN_BACKWARD, scan_results, _CASTS),
    (SCAN_2D, SCAN_2D_BACKWARD, scan_2d_results, _CASTS_2D),
    (SCAN_TORCH, SCAN_BACKWARD_TORCH, _without_states(scan_results), _CASTS),
    (SCAN_2D_TORCH, SCAN_2D_BACKWARD_TORCH, _without_states(scan_2d_results), _CASTS_2D),
):
    _library.impl(_op.name, _results, "Meta")
    _library.impl(_backward.name, gradient_results(_backward), "Meta")
    _library.impl(_op.name, _autograd(_op, _backward), "Autograd")
    for _key in ("AutocastCPU", "AutocastCUDA"):
        _library.impl(_op.name, _autocast(_op, _key, *_casts), _key)

for _op, _backward in (
    (SCAN_TORCH, SCAN_BACKWARD_TORCH),
    (SCAN_2D_TORCH, SCAN_2D_BACKWARD_TORCH),
):
    _define = _DEFINITIONS[_backward.name]
    _library.impl(_op.name, _scan_torch(_op, _define), "CompositeExplicitAutograd")
    _library.impl(_backward.name, _backward_torch(_backward, _define), "CompositeExplicitAutograd")


for _op, _backward, _results in (
    (MEANS, MEANS_BACKWARD, normalized_means_results),
    (SUM, SUM_BACKWARD, gated_sum_results),
):
    _library.impl(_op.name, _results, "Meta")
    _library.impl(_backward.name, gradient_results(_backward, empty="x"), "Meta")
    _library.impl(_op.name, _autograd(_op, _backward), "Autograd")


def scan_flops(batch: int, rows: int, length: int, d_state: int, has_D: bool = True) -> int:
    """Return the FLOPs of a selective scan as the papers count them: ``9 N + 1`` per row and step.

    Args:
        batch: Batch size.
        rows: Scanned rows per image (routes times channels).
        length: Steps L.
        d_state: State size N.
        has_D: Whether the skip term is added.
    """
    return batch * rows * length * (9 * d_state + int(has_D))


def _scan_formula(*args, out_shape=None, **kwargs) -> int:
    a = SimpleNamespace(**SCAN.bind(args, kwargs))
    return scan_flops(a.u[0], a.u[1], a.u[2], a.A[1], a.D is not None)


def _scan_2d_formula(*args, out_shape=None, **kwargs) -> int:
    a = SimpleNamespace(**SCAN_2D.bind(args, kwargs))
    num_routes, channels, dt_rank = a.dt_weight
    projection = 2 * a.x[0] * a.routes[1] * num_routes * channels * dt_rank
    return projection + scan_flops(a.x[0], a.A[0], a.routes[1], a.A[1], a.D is not None)


for _packet, _formula in (
    (torch.ops.mmvssm.selective_scan, _scan_formula),
    (torch.ops.mmvssm.selective_scan_2d, _scan_2d_formula),
):
    if hasattr(flop_counter, "register_flop_formula"):
        _formula = flop_counter.register_flop_formula(_packet)(_formula)
        # torch 2.4 registers overloads, and looks for the op
        flop_counter.flop_registry.setdefault(_packet, _formula)
    else:  # torch 2.1
        flop_counter.flop_mapping[_packet] = _formula  # type: ignore[attr-defined]
