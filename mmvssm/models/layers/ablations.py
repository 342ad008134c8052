"""Variants of SS2D from the ablations of VMamba's paper; no published weights use them.

`VMamba: Visual State Space Model <https://arxiv.org/abs/2401.10166>`_
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvssm.ops.precision import compute_dtype
from mmvssm.ops.routes import RouteSet, route_set
from mmvssm.registry import MODELS

from .scans import Route
from .ss2d import SS2D


@MODELS.register_module()
class CascadeSS2D(SS2D):
    """SS2D that scans rows, then columns, each both ways and after a layer norm.

    The reversed scan is added without flipping it back, as in the published code. Arguments are
    those of :class:`SS2D` except for ``scan``, ``merge`` and ``output_order``.
    """

    #: Whether the output of the reversed scan is flipped back to the pixels that it read.
    flip = False

    def build_ssm_parameters(self) -> None:
        """Create the scan's parameters: two routes of rows, then two of columns."""
        if self.scan.name != "cross2d":
            raise ValueError(
                f"{type(self).__name__} always scans rows and columns; do not pass scan, got"
                f" {self.scan.name!r}"
            )
        super().build_ssm_parameters()

    def scan_map(self, x: Tensor) -> Tensor:
        """Run the cascaded scans over ``x (B, H, W, Di)``; return float32 of the same shape."""
        dtype = x.dtype
        for first in (0, 2):
            lines = F.layer_norm(x, x.shape[-1:]).to(dtype).flatten(0, 1)
            routes = _line_routes(lines.shape[1], self.flip, lines.device)
            y = self.run_scan(lines, routes, param_sets=slice(first, first + 2))
            x = y.view(x.shape).transpose(1, 2).contiguous()
        return x

    def name_routes(
        self, height: int, width: int, cls_positions: Sequence[int] = ()
    ) -> list[Route]:
        """Return the rows and the columns, each row and column as a separate sequence."""
        pixels = torch.arange(height * width).view(height, width)
        routes = []
        for what, lines in (("rows", pixels), ("columns", pixels.t())):
            starts = tuple(range(lines.shape[1], lines.numel(), lines.shape[1]))
            for name, steps in (
                (f"each of the {what}", lines),
                (f"each of the {what}, reversed", lines.flip(1)),
            ):
                routes.append(Route(name, (height, width), steps.flatten(), starts=starts))
        return routes


@MODELS.register_module()
class FlippedCascadeSS2D(CascadeSS2D):
    """:class:`CascadeSS2D` that flips the reversed scan back to the pixels that it read."""

    flip = True


def _both_ways(height: int, width: int) -> Tensor:
    """Visit a line forward and backward."""
    line = torch.arange(width, dtype=torch.int32)
    return torch.stack([line, line.flip(0)])


def _both_ways_unflipped(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Visit a line forward and backward, but write the reversed scan in the order of its steps."""
    table = _both_ways(height, width)
    return table, table[:1].expand(2, -1).contiguous()


def _line_routes(length: int, flip: bool, device: torch.device) -> RouteSet:
    return route_set(_both_ways if flip else _both_ways_unflipped, 1, length, device=device)


@MODELS.register_module()
class ScalarDecaySS2D(SS2D):
    """SS2D with one decay per head instead of one per channel and state ("m0").

    There are ``dt_rank`` heads of ``Di / dt_rank`` channels and no step projection. Arguments are
    those of :class:`SS2D`; ``ssm_init`` must be ``'v1'`` (normal) or ``'v2'`` (zero and uniform).

    Raises:
        ValueError: If ``ssm_init`` is another name, or the heads do not divide the inner width.
    """

    def build_ssm_parameters(self) -> None:
        """Create the scan's parameters, uninitialised."""
        if self.ssm_init not in ("v1", "v2"):
            raise ValueError(
                f"ssm_init must be 'v1' or 'v2' with scalar decay, got {self.ssm_init!r}"
            )
        sets, heads, inner = self.num_param_sets, self.dt_rank, self.inner_dims
        if inner % heads:
            raise ValueError(
                f"dt_rank must divide the inner width {inner} with scalar decay, got {heads}"
            )
        self.x_proj_weight = nn.Parameter(torch.empty(sets, heads + 2 * self.d_state, inner))
        self.dt_projs_bias = nn.Parameter(torch.empty(sets, heads))
        self.A_logs = nn.Parameter(torch.empty(sets, heads))
        self.Ds = nn.Parameter(torch.empty(sets, heads, inner // heads))

    @torch.no_grad()
    def reset_ssm_parameters(self) -> None:
        """Initialise the scan's parameters."""
        bound = self.x_proj_weight.shape[-1] ** -0.5
        self.x_proj_weight.uniform_(-bound, bound)
        self.Ds.fill_(1.0)
        if self.ssm_init == "v1":
            self.A_logs.normal_()
            self.dt_projs_bias.normal_().mul_(0.1)
        else:
            self.A_logs.zero_()
            self.dt_projs_bias.uniform_().mul_(0.1)

    def scan_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the parameters of the op; all channels of a head share its step and decay."""
        head_dim = self.Ds.shape[-1]
        A = -torch.exp(self.A_logs.to(compute_dtype(self.A_logs.dtype)))
        A = A.repeat_interleave(head_dim, dim=1).view(-1, 1).expand(-1, self.d_state)
        heads = torch.eye(self.dt_rank, dtype=A.dtype, device=A.device)
        dt_weight = heads.repeat_interleave(head_dim, dim=0).expand(self.num_param_sets, -1, -1)
        dt_bias = self.dt_projs_bias.repeat_interleave(head_dim, dim=1)
        return A, dt_weight, dt_bias, self.Ds.flatten()
