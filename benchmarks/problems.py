"""Subjects of the benchmarks: scan problems of the published models, baselines and floors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmvssm import ops
from mmvssm.ops.problems import Scan
from mmvssm.ops.routes import RouteSet

# H200: memory bandwidth in bytes/s and special-function operations/s, for the floors.
H200 = dict(bandwidth=4.3e12, special=132 * 16 * 1.98e9)


def stages(name: str, batch: int, size: tuple[int, int], widths, d_state: int) -> list[Scan]:
    """Return the scans of a hierarchical model's stages; widths are (scanned channels, rank)."""
    scans = []
    for i, (channels, dt_rank) in enumerate(widths):
        height, width = (-(-s // 2 ** (i + 2)) for s in size)
        label = f"{name} stage{i + 1} {size[0]}x{size[1]} bs{batch}"
        scans.append(Scan(label, batch, channels, d_state, height, width, dt_rank))
    return scans


V0_TINY = [(192, 6), (384, 12), (768, 24), (1536, 48)]
TINY_S1L8 = [(96, 6), (192, 12), (384, 24), (768, 48)]

# The two problems for which the CPU targets are stated.
REFERENCE_SCANS = [
    Scan("B2 K4 D192 N16 L784", 2, 192, 16, 28, 28, 12),
    Scan("B2 K4 D96 N1 L3136", 2, 96, 1, 56, 56, 6),
]


def sliced_loop(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """Scan with the loop usual in research code: all decays at once, then a slice for each step."""
    step = F.softplus(delta + delta_bias[:, None])
    B, C = (t.repeat_interleave(u.shape[1] // t.shape[1], dim=1) for t in (B, C))
    decay = torch.exp(torch.einsum("bdl,dn->bdln", step, A))
    update = torch.einsum("bdl,bdnl,bdl->bdln", step, B, u)
    state = u.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for i in range(u.shape[2]):
        state = decay[:, :, i] * state + update[:, :, i]
        outputs.append(torch.einsum("bdn,bdn->bd", state, C[:, :, :, i]))
    return torch.stack(outputs, dim=2) + u * D[:, None]


def gather_scan_merge(
    x: Tensor,
    x_dbl: Tensor,
    routes: RouteSet,
    A: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    D: Tensor,
) -> Tensor:
    """Scan along routes, unfused: gathered copies, the 1-D kernel, a scatter-add."""
    batch, pixels, channels = x.shape
    num_routes, length = routes.read.shape
    index, route = routes.read.long(), torch.arange(num_routes, device=x.device)[:, None]
    u = x[:, index].transpose(2, 3)
    dt, B, C = x_dbl[:, index, route].split([dt_weight.shape[2], *[A.shape[1]] * 2], dim=-1)
    delta = torch.einsum("bklr,kdr->bkdl", dt, dt_weight.to(dt.dtype))
    y = ops.selective_scan(
        u.reshape(batch, -1, length),
        delta.reshape(batch, -1, length),
        A,
        B.transpose(2, 3).contiguous(),
        C.transpose(2, 3).contiguous(),
        D,
        delta_bias=dt_bias.flatten(),
        delta_softplus=True,
    )
    y = y.view(batch, num_routes, channels, length).transpose(2, 3).flatten(1, 2)
    return y.new_zeros(batch, pixels, channels).index_add(1, index.flatten(), y)
