"""A user's project: a gated scan along routes, with its own kernel, as a mixer.

A gate z between 0 and 1 takes a pixel into the state: h[l] = h[l-1] + z (x - h[l-1]).
Source: minGRU of Feng et al., "Were RNNs All We Needed?", https://arxiv.org/abs/2410.01201.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import cpp_extension

from mmvssm.ops.routes import read_scan, route_set
from mmvssm.registry import MODELS


def gated_scan_reference(x: Tensor, gate: Tensor, routes: Tensor) -> Tensor:
    """The definition: x (B, P, D), gate (B, P, K, D), routes (K, L) -> (B, P, D)."""
    y = torch.zeros_like(x)
    for k, route in enumerate(routes):
        route = route[route >= 0].long()
        h, states = torch.zeros_like(x[:, 0]), []
        for pixel in route.tolist():
            h = h + gate[:, pixel, k] * (x[:, pixel] - h)
            states.append(h)
        y = y.index_add(1, route, torch.stack(states, dim=1))
    return y


@cache
def compiled(real: str) -> ctypes.CDLL:
    """Compile gated_scan.cpp for float or double, unless that has been done already."""
    name, source = f"gated_scan_{real}", Path(__file__).with_suffix(".cpp")
    folder = source.parent / "build"
    folder.mkdir(exist_ok=True)
    flags = dict(extra_cflags=["-O3", f"-DReal={real}"], is_python_module=False)
    cpp_extension.load(name, str(source), build_directory=str(folder), **flags)
    return ctypes.CDLL(str(folder / f"{name}.so"))


def run_kernel(x: Tensor, gate: Tensor, routes: Tensor, *others: Tensor | None) -> None:
    """Run the kernel with ``others``: y to be written; or None, dy, and both gradients."""
    real = {torch.float32: "float", torch.float64: "double"}.get(x.dtype)
    if real is None:
        raise TypeError(f"x must be float32 or float64, got {x.dtype}")
    shape = (*x.shape[:2], len(routes), x.shape[2])
    if gate.shape != shape or gate.dtype != x.dtype:
        raise ValueError(f"gate must be {x.dtype} {shape}, got {gate.dtype} {tuple(gate.shape)}")
    if routes.dtype != torch.int32 or routes.min() < -1 or routes.max() >= x.shape[1]:
        raise ValueError(f"routes must be int32, from -1 to {x.shape[1] - 1}, got {routes}")
    sizes = (ctypes.c_int64 * 5)(*x.shape, *routes.shape)
    tensors = [routes, x, gate, *others, *[None] * (4 - len(others))]
    compiled(real).scan(
        sizes, *(t if t is None else ctypes.c_void_p(t.data_ptr()) for t in tensors)
    )


@torch.library.custom_op("gated::scan", mutates_args=(), device_types="cpu")
def gated_scan(x: Tensor, gate: Tensor, routes: Tensor) -> Tensor:
    """Compute :func:`gated_scan_reference` with the kernel."""
    y = torch.zeros_like(x, memory_format=torch.contiguous_format)
    run_kernel(x.contiguous(), gate.contiguous(), routes.contiguous(), y)
    return y


@torch.library.custom_op("gated::scan_backward", mutates_args=(), device_types="cpu")
def gradients(dy: Tensor, x: Tensor, gate: Tensor, routes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients with respect to x and gate."""
    dy, x, gate, routes = (t.contiguous() for t in (dy, x, gate, routes))
    dx, dgate = torch.zeros_like(x), torch.zeros_like(gate)
    run_kernel(x, gate, routes, None, dy, dx, dgate)
    return dx, dgate


gated_scan.register_fake(lambda x, gate, routes: x.new_empty(x.shape))
gradients.register_fake(lambda dy, x, gate, routes: tuple(t.new_empty(t.shape) for t in (x, gate)))
gated_scan.register_autograd(
    lambda ctx, dy: (*gradients(dy, *ctx.saved_tensors), None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
torch.library.register_autocast("gated::scan", "cpu", torch.float32)


@MODELS.register_module()
class GatedSS2D(nn.Module):
    """Linear layer, gated scans along routes, norm, linear layer."""

    def __init__(self, embed_dims: int, scan: str = "cross2d") -> None:
        super().__init__()
        self.scan = read_scan(scan)
        self.in_proj = nn.Linear(embed_dims, embed_dims)
        self.gates = nn.Linear(embed_dims, self.scan.num_routes * embed_dims)
        self.norm = nn.LayerNorm(embed_dims)
        self.out_proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``."""
        routes = route_set(self.scan, *x.shape[1:3], device=x.device)
        if routes.writes_elsewhere:
            raise ValueError(f"scan {self.scan.name!r} writes elsewhere than it reads")
        gate = self.gates(x).sigmoid().flatten(1, 2).unflatten(-1, (routes.num_routes, -1))
        scan = gated_scan if x.is_cpu else gated_scan_reference
        y = scan(self.in_proj(x).flatten(1, 2), gate, routes.read)
        return self.out_proj(self.norm(y.view(x.shape)))
