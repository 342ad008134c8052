"""The scan along routes in standard ONNX operators, for torch's exporter.

The exporter calls :func:`scan_2d` where a traced model has ``torch.ops.mmvssm.selective_scan_2d``.
The translation contains no sizes: batch, routes, pixels and length are read from the tensors.

A route of L steps is cut into about ``sqrt(L)`` chunks. All chunks are scanned in parallel from a
zero state; the states that enter the chunks are computed one after the other; then all chunks are
scanned again from these states. A file thus needs about ``3 * sqrt(L)`` sequential steps, in the
operator ``Scan``, and nothing is ever divided by a product of decays, which underflows.
"""

# no annotations from __future__, because onnxscript reads annotations
# mypy: ignore-errors

from itertools import pairwise

from onnxscript import FLOAT, INT64, graph, script
from onnxscript import opset18 as op
from onnxscript.values import Opset

_DOMAIN = Opset("mmvssm", 1)


@script(_DOMAIN, default_opset=op)
def SelectiveScan(u: FLOAT, step: FLOAT, B: FLOAT, C: FLOAT, A: FLOAT) -> FLOAT:
    """Scan ``u, step (Bt, K, L, D)`` with ``B, C (Bt, K, L, N)`` and ``A (K, D, N)``."""
    size = op.Shape(u)
    batch_routes = op.Slice(size, [0], [2])
    length = op.Slice(size, [2], [3])
    # about as many chunks as steps per chunk
    root = op.Ceil(op.Sqrt(op.Cast(length, to=1)))
    steps = op.Cast(root, to=7)
    chunks = op.Div(length + steps - 1, steps)
    missing = chunks * steps - length
    # steps of size 0 neither decay nor write
    pads = op.Concat([0, 0, 0, 0, 0, 0], missing, [0], axis=0)
    cut = op.Concat(batch_routes, chunks, steps, [-1], axis=0)
    # (steps, Bt, K, chunks, D or N)
    u_cut = op.Transpose(op.Reshape(op.Pad(u * step, pads), cut), perm=[3, 0, 1, 2, 4])
    step_cut = op.Transpose(op.Reshape(op.Pad(step, pads), cut), perm=[3, 0, 1, 2, 4])
    B_cut = op.Transpose(op.Reshape(op.Pad(B, pads), cut), perm=[3, 0, 1, 2, 4])
    C_cut = op.Transpose(op.Reshape(op.Pad(C, pads), cut), perm=[3, 0, 1, 2, 4])
    rates = op.Unsqueeze(A, [1])

    total = op.ReduceSum(step_cut, [0], keepdims=0)
    chunk_decay = op.Exp(op.Unsqueeze(total, [-1]) * rates)
    zeros = chunk_decay * 0.0

    @graph()
    def close(state, step_t, u_t, B_t):
        decay = op.Exp(op.Unsqueeze(step_t, [-1]) * rates)
        written = op.Unsqueeze(u_t, [-1]) * op.Unsqueeze(B_t, [-2])
        closed = decay * state + written
        return closed

    local = op.Scan(zeros, step_cut, u_cut, B_cut, body=close, num_scan_inputs=3)

    @graph()
    def carry(state, decay_c, local_c):
        carried = decay_c * state + local_c
        entered = op.Identity(state)
        return carried, entered

    decay_first = op.Transpose(chunk_decay, perm=[2, 0, 1, 3, 4])
    local_first = op.Transpose(local, perm=[2, 0, 1, 3, 4])
    start = op.ReduceSum(local_first, [0], keepdims=0) * 0.0
    _, entering = op.Scan(start, decay_first, local_first, body=carry, num_scan_inputs=2)
    entering_state = op.Transpose(entering, perm=[1, 2, 0, 3, 4])

    @graph()
    def advance(state, step_s, u_s, B_s, C_s):
        decay_s = op.Exp(op.Unsqueeze(step_s, [-1]) * rates)
        written_s = op.Unsqueeze(u_s, [-1]) * op.Unsqueeze(B_s, [-2])
        advanced = decay_s * state + written_s
        y_s = op.ReduceSum(advanced * op.Unsqueeze(C_s, [-2]), [-1], keepdims=0)
        return advanced, y_s

    _, y = op.Scan(entering_state, step_cut, u_cut, B_cut, C_cut, body=advance, num_scan_inputs=4)
    y_rows = op.Reshape(
        op.Transpose(y, perm=[1, 2, 3, 0, 4]),
        op.Concat(batch_routes, [-1], op.Slice(size, [3], [4]), axis=0),
    )
    return op.Slice(y_rows, [0], length, [2])


def _ints(*values):
    return op.Constant(value_ints=list(values))


def _size(tensor, axis):
    """Return one size of a tensor as a 1-D tensor."""
    return op.Shape(tensor, start=axis, end=axis + 1)


def _rows(map_, index, num_routes, apart):
    """Gather rows ``(Bt, K, L, E)`` of ``(Bt, P, E)``, or of ``(Bt, P, K, E)`` if ``apart``."""
    if apart:
        joined = op.Concat(_size(map_, 0), _ints(-1), _size(map_, 3), axis=0)
        map_, index = op.Reshape(map_, joined), _with_route(index, num_routes)
    return op.Gather(map_, index, axis=1)


def _with_route(index, num_routes):
    """Convert row indices ``(K, L)`` to indices of rows and routes."""
    routes = op.Unsqueeze(_ints(*range(num_routes)), _ints(1))
    return op.Add(op.Mul(index, _ints(num_routes)), routes)


def scan_2d(
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
    save_states=False,
    route_facts=0,
):
    """Translate ``torch.ops.mmvssm.selective_scan_2d``; see its reference for the arguments."""
    num_routes, channels, dt_rank = dt_weight.shape
    d_state = A.shape[1]
    zero = op.Constant(value_int=0)
    read = op.Cast(routes, to=INT64.dtype)
    visible = op.Cast(op.GreaterOrEqual(read, zero), to=FLOAT.dtype)
    visible = op.Unsqueeze(visible, _ints(0, 3))
    source = op.Max(read, zero)
    u = op.Mul(_rows(x, source, num_routes, len(x.shape) == 4), visible)
    if x_dbl.shape[2] == 1:
        projection = op.Gather(op.Squeeze(x_dbl, _ints(2)), source, axis=1)
    else:
        projection = _rows(x_dbl, source, num_routes, True)
    projection = op.Mul(projection, visible)
    ends = (0, dt_rank, dt_rank + d_state, dt_rank + 2 * d_state)
    dt, B, C = (
        op.Slice(projection, _ints(first), _ints(end), _ints(3)) for first, end in pairwise(ends)
    )
    delta = op.MatMul(dt, op.Transpose(dt_weight, perm=[0, 2, 1]))
    step = op.Softplus(op.Add(delta, op.Unsqueeze(dt_bias, _ints(1))))
    rates = op.Reshape(A, _ints(num_routes, channels, d_state))
    y = SelectiveScan(u, step, B, C, rates)
    if D is not None:
        y = op.Add(y, op.Mul(u, op.Reshape(D, _ints(num_routes, 1, channels))))

    # an extra row collects the outputs that are written nowhere
    if isinstance(num_out, int):
        num_out = op.Constant(value_int=num_out)
    out = op.Cast(out_routes, to=INT64.dtype)
    target = op.Where(op.GreaterOrEqual(out, zero), out, num_out)
    num_rows = op.Reshape(num_out, _ints(1))
    rows, like = op.Add(num_rows, _ints(1)), op.Concat(_size(x, 0), _ints(channels), axis=0)
    if not merge:
        target = _with_route(target, num_routes)
        rows = op.Mul(rows, _ints(num_routes))
    y = op.Reshape(op.Transpose(y, perm=[1, 2, 0, 3]), op.Concat(_ints(-1), like, axis=0))
    # not ScatterND, which ONNX Runtime runs in several threads and which loses sums in a row
    written = op.ScatterElements(
        op.Expand(op.Constant(value_float=0.0), op.Concat(rows, like, axis=0)),
        op.Expand(op.Reshape(target, _ints(-1, 1, 1)), op.Shape(y)),
        y,
        axis=0,
        reduction="add",
    )
    written = op.Transpose(written, perm=[1, 0, 2])
    if not merge:
        apart = op.Concat(_size(x, 0), _ints(-1, num_routes, channels), axis=0)
        written = op.Reshape(written, apart)
    # no states are saved without gradients
    return op.Slice(written, _ints(0), num_rows, _ints(1)), op.Constant(value_float=0.0)
