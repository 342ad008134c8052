"""The ops in plain PyTorch: the selective scan, a faster chunked form of it, the merge of routes.

For every channel ``c`` of group ``k`` and every state ``n``, with ``h[-1] = 0``::

    d[l] = softplus(delta[l] + delta_bias)          (or without softplus)
    h[l] = exp(d[l] * A) * h[l-1] + d[l] * u[l] * B[l]
    y[l] = sum_n C[l] * h[l] + D * u[l]

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
https://arxiv.org/abs/2312.00752 (the recurrence), and Liu et al., "VMamba: Visual State Space
Model", https://arxiv.org/abs/2401.10166 (scans along routes over a map).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .precision import compute_dtype, without_autocast
from .tracers import is_transformed

# Steps that the chunked form keeps in memory at a time; autograd recomputes each segment.
SEGMENT = 256


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scan by the definition, one step after the other.

    Args:
        u: Input ``(Bt, K*D, L)``.
        delta: Step sizes ``(Bt, K*D, L)``.
        A: Negative decay rates ``(K*D, N)``.
        B: Input maps ``(Bt, K, N, L)``; group ``k`` serves the channels ``k*D .. (k+1)*D - 1``.
        C: Output maps ``(Bt, K, N, L)``.
        D: Skip weights ``(K*D,)`` or None.
        delta_bias: Bias added to ``delta``, ``(K*D,)`` or None.
        delta_softplus: Whether the step size is ``softplus(delta + delta_bias)``.

    Returns:
        ``y (Bt, K*D, L)`` and the last state ``(Bt, K*D, N)``, both float32 (float64 for float64
        input).
    """
    u, step, A, B, C, D = _prepare(u, delta, A, B, C, D, delta_bias, delta_softplus)
    state = u.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for u_l, step_l, B_l, C_l in zip(u.unbind(-1), step.unbind(-1), B.unbind(-1), C.unbind(-1)):
        state = torch.exp(step_l[..., None] * A) * state + (step_l * u_l)[..., None] * B_l
        outputs.append((state * C_l).sum(-1))
    y = torch.stack(outputs, dim=-1)
    return (y if D is None else y + D[:, None] * u), state


def selective_scan_chunked(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scan in about ``2 * sqrt(SEGMENT)`` vectorised steps per segment.

    All chunks of a segment are scanned in parallel, each from a zero state. The states that enter
    the chunks are then computed one after the other, and their decayed contributions are added.
    Nothing is ever divided by a product of decays, which underflows. If gradients are needed, each
    segment is recomputed in the backward pass, so that memory stays that of one segment (except
    under ``torch.func``).

    Arguments and returns are those of :func:`selective_scan_reference`.
    """
    u, step, A, B, C, D = _prepare(u, delta, A, B, C, D, delta_bias, delta_softplus)
    state = u.new_zeros(u.shape[0], *A.shape)
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (u, step, A, B, C))
    # torch.func and forward mode do not support the hooks that recompute a segment
    recomputes = needs_grad and not is_transformed()
    outputs = []
    segments = zip(*(t.split(SEGMENT, dim=-1) for t in (u, step, B, C)))
    for u_part, step_part, B_part, C_part in segments:
        arguments = (u_part, step_part, B_part, C_part, A, state)
        if recomputes:
            y, state = checkpoint(_scan_segment, *arguments, use_reentrant=False)
        else:
            y, state = _scan_segment(*arguments)
        outputs.append(y)
    y = torch.cat(outputs, dim=-1)
    return (y if D is None else y + D[:, None] * u), state


def selective_scan_2d_reference(
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
    scan=selective_scan_reference,
) -> Tensor:
    """Scan along routes by gathering, calling :func:`selective_scan_reference`, and scattering.

    Args:
        x: Map of ``P`` pixels ``(Bt, P, D)``, or one per route ``(Bt, P, K, D)``.
        x_dbl: Projections ``(Bt, P, K, R + 2N)``, or shared by the routes ``(Bt, P, 1, R + 2N)``;
            the last axis holds the dt rank, B and C.
        routes: int32 ``(K, L)``: the pixel read at each step, -1 for a zero token.
        A: Negative decay rates ``(K*D, N)``.
        dt_weight: Step projection ``(K, D, R)``.
        dt_bias: Step bias ``(K, D)``.
        D: Skip weights ``(K*D,)`` or None.
        out_routes: int32 ``(K, L)``: the row written at each step, -1 for none; ``routes`` if None.
        num_out: Rows of the output ``Q``; ``P`` if None.
        merge: ``'sum'`` adds the routes, ``'none'`` keeps them separate.
        scan: The 1-D scan to use.

    Returns:
        ``(Bt, Q, D)`` for ``'sum'``, ``(Bt, Q, K, D)`` for ``'none'``; float32 (float64).
    """
    batch, pixels, channels = x.shape[0], x.shape[1], x.shape[-1]
    (num_routes, length), d_state, dt_rank = routes.shape, A.shape[1], dt_weight.shape[-1]
    out_routes = routes if out_routes is None else out_routes
    num_out = pixels if num_out is None else num_out
    dtype = compute_dtype(x.dtype)

    visible = (routes >= 0)[:, :, None]
    source, route = routes.clamp(min=0).long(), torch.arange(num_routes, device=x.device)[:, None]
    u = x[:, source] if x.dim() == 3 else x[:, source, route]
    projection = x_dbl[:, source, route if x_dbl.shape[2] > 1 else 0]
    u, projection = (t.to(dtype) * visible for t in (u, projection))
    dt, B, C = projection.split([dt_rank, d_state, d_state], dim=-1)
    with without_autocast(x.device.type):
        delta = torch.einsum("bklr,kdr->bkdl", dt, dt_weight.to(dtype))
    y, _ = scan(
        u.transpose(2, 3).reshape(batch, num_routes * channels, length),
        delta.reshape(batch, num_routes * channels, length),
        A,
        B.transpose(2, 3),
        C.transpose(2, 3),
        D,
        dt_bias.reshape(-1),
        True,
    )
    y = y.view(batch, num_routes, channels, length).transpose(2, 3)

    # An extra row collects the outputs that are written nowhere.
    target = torch.where(out_routes >= 0, out_routes, num_out).long()
    out = y.new_zeros(batch, num_out + 1, num_routes, channels)
    out = out.index_put((slice_index(batch, x.device), target, route), y, accumulate=True)
    out = out[:, :num_out]
    return out.sum(2) if merge == "sum" else out


def normalized_means_reference(
    x: Tensor,
    scale: Tensor | None,
    eps: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return the means over pixels of layer-normalised outputs of routes.

    Args:
        x: Outputs ``(B, P, K, D)``.
        scale: Factors ``(B, P, D)`` of the outputs, shared by the routes; None for ones.
        eps: Added to the variance over the channels.
        weight: Weight ``(D,)`` of the layer norm; None for ones.
        bias: Bias ``(D,)`` of the layer norm; None for zeros.

    Returns:
        ``(B, K, D)``, float32 (float64).
    """
    x = x.to(compute_dtype(x.dtype))
    if scale is not None:
        x = x * scale[:, :, None]
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps).mean(1)


def gated_sum_reference(x: Tensor, gates: Tensor, scale: Tensor | None) -> Tensor:
    """Sum the outputs of routes, weighted by a gate for each channel of a route.

    Args:
        x: Outputs ``(B, P, K, D)``.
        gates: ``(B, K, D)``.
        scale: Factors ``(B, P, D)`` of the sum; None for ones.

    Returns:
        ``(B, P, D)``, float32 (float64).
    """
    dtype = compute_dtype(x.dtype)
    # route by route, because the product of all outputs would be another tensor of their size
    (part, gate), *others = zip(x.unbind(2), gates[:, None].to(dtype).unbind(2))
    total = part.to(dtype) * gate
    for part, gate in others:
        total = torch.addcmul(total, part.to(dtype), gate)
    return total if scale is None else total * scale.to(dtype)


def slice_index(size: int, device: torch.device) -> Tensor:
    """Return the index ``(size, 1, 1)`` that means ``:`` on the first axis of an advanced index."""
    return torch.arange(size, device=device)[:, None, None]


def _prepare(u, delta, A, B, C, D, delta_bias, delta_softplus):
    """Cast, apply bias and softplus, and repeat B and C per channel: ``(Bt, K*D, N, L)``."""
    dtype = compute_dtype(u.dtype)
    u, step, A, B, C = (t.to(dtype) for t in (u, delta, A, B, C))
    D = None if D is None else D.to(dtype)
    if delta_bias is not None:
        step = step + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        step = F.softplus(step)
    per_group = u.shape[1] // B.shape[1]
    B, C = (t.repeat_interleave(per_group, dim=1) for t in (B, C))
    return u, step, A, B, C, D


def _scan_segment(u, step, B, C, A, state):
    """Scan one segment from the state that enters it; return its output and its last state."""
    length = u.shape[-1]
    steps = math.isqrt(length - 1) + 1  # per chunk
    chunks = -(-length // steps)
    padding = chunks * steps - length
    # Padded steps have size 0, so they neither decay nor write. The chunks become an axis.
    u, step, B, C = (F.pad(t, (0, padding)).unflatten(-1, (chunks, steps)) for t in (u, step, B, C))
    decay_rate = A[:, :, None]
    local = u.new_zeros(*u.shape[:2], A.shape[1], chunks)
    y_local = []
    for t in range(steps):
        decay = torch.exp(step[..., None, :, t] * decay_rate)
        local = decay * local + (step[..., t] * u[..., t])[:, :, None] * B[..., t]
        y_local.append((local * C[..., t]).sum(2))

    elapsed = step.cumsum(-1)
    chunk_decay = torch.exp(elapsed[..., None, :, -1] * decay_rate)
    entering = []
    for chunk in range(chunks):
        entering.append(state)
        state = chunk_decay[..., chunk] * state + local[..., chunk]
    carried = torch.exp(elapsed[:, :, None] * A[:, :, None, None])
    y_carried = (carried * torch.stack(entering, dim=-1)[..., None] * C).sum(2)
    y = (torch.stack(y_local, dim=-1) + y_carried).flatten(-2)
    return y[..., :length], state
