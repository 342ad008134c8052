"""What is timed: scan problems of the published models, baselines, floors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmvssm import ops
from mmvssm.ops.routes import RouteSet

# H200: memory bandwidth in bytes/s and special-function operations/s, for the floors.
H200_BANDWIDTH, H200_SPECIAL = 4.3e12, 132 * 16 * 1.98e9


@dataclass(frozen=True)
class Scan:
    """One scan problem: ``routes`` routes of ``channels`` channels over a map."""

    name: str
    batch: int
    channels: int
    d_state: int
    height: int
    width: int
    dt_rank: int
    routes: int = 4

    @property
    def length(self) -> int:
        """Steps of a route."""
        return self.height * self.width

    def inputs_1d(self, dtype: torch.dtype, device: str, stress: bool = False) -> dict[str, Tensor]:
        """Random inputs of ``selective_scan``; steps in [1e-3, 0.1], or [1, 20] for stress."""
        rows = self.routes * self.channels
        low, high = (1.0, 20.0) if stress else (1e-3, 0.1)
        step = torch.empty(self.batch, rows, self.length).uniform_(low, high)
        maps = torch.randn(2, self.batch, self.routes, self.d_state, self.length)
        tensors = {
            "u": torch.randn(self.batch, rows, self.length).to(dtype),
            "delta": torch.log(torch.expm1(step)).to(dtype),
            "A": -torch.rand(rows, self.d_state) * self.d_state,
            "B": maps[0].to(dtype),
            "C": maps[1].to(dtype),
            "D": torch.randn(rows),
            "delta_bias": 0.01 * torch.randn(rows),
        }
        return {name: t.to(device) for name, t in tensors.items()}

    def inputs_2d(self, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        """Fresh random inputs of ``selective_scan_2d``, without the route table."""
        width = self.dt_rank + 2 * self.d_state
        scale = self.dt_rank**-0.5
        tensors = {
            "x": torch.randn(self.batch, self.length, self.channels).to(dtype),
            "x_dbl": torch.randn(self.batch, self.length, self.routes, width).to(dtype),
            "A": -torch.rand(self.routes * self.channels, self.d_state) * self.d_state,
            "dt_weight": scale * torch.randn(self.routes, self.channels, self.dt_rank),
            "dt_bias": torch.randn(self.routes, self.channels) - 4.5,
            "D": torch.randn(self.routes * self.channels),
        }
        return {name: t.to(device) for name, t in tensors.items()}

    @property
    def steps(self) -> int:
        """Steps of the recurrence, over batch, routes, channels and length."""
        return self.batch * self.routes * self.channels * self.length

    def needs(self, itemsize: int, out_itemsize: int, backward: bool) -> tuple[int, int]:
        """Bytes of memory traffic and special-function operations that one pass takes at least.

        The forward pass reads the inputs of the 1-D scan and writes its output. The backward pass
        reads the inputs and the output's gradient, writes every input's gradient, and computes the
        exponentials again.
        """
        maps = 2 * self.batch * self.routes * self.d_state * self.length * itemsize
        traffic = self.steps * (2 * itemsize + out_itemsize) + maps
        if backward:
            traffic += self.steps * 2 * itemsize + maps
        return traffic, self.steps * (self.d_state + 2)

    def floor_1d_ms(self, itemsize: int, out_itemsize: int, backward: bool) -> float:
        """Time that an H200 needs at least: the larger of memory traffic and exponentials."""
        passes = [self.needs(itemsize, out_itemsize, b) for b in (False, True)[: 1 + backward]]
        traffic, special = (sum(needs) for needs in zip(*passes, strict=True))
        return 1e3 * max(traffic / H200_BANDWIDTH, special / H200_SPECIAL)


def stages(name: str, batch: int, size: tuple[int, int], widths, d_state: int) -> list[Scan]:
    """The scans of the four stages of a hierarchical model; widths are the scanned channels."""
    scans = []
    for i, (channels, dt_rank) in enumerate(widths):
        height, width = (-(-s // 2 ** (i + 2)) for s in size)
        label = f"{name} stage{i + 1} {size[0]}x{size[1]} bs{batch}"
        scans.append(Scan(label, batch, channels, d_state, height, width, dt_rank))
    return scans


V0_TINY = [(192, 6), (384, 12), (768, 24), (1536, 48)]
TINY_S1L8 = [(96, 6), (192, 12), (384, 24), (768, 48)]

# The two problems that the CPU targets are stated for.
REFERENCE_SCANS = [
    Scan("B2 K4 D192 N16 L784", 2, 192, 16, 28, 28, 12),
    Scan("B2 K4 D96 N1 L3136", 2, 96, 1, 56, 56, 6),
]


def sliced_loop(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """The per-step loop usual in research code: all decays at once, then a slice for every step."""
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
    """The route form unfused: gathered copies, the 1-D kernel, a scatter-add."""
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
