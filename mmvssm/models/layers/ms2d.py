"""MS2D: the mixer of MSVMamba, selective scans of a map at full and half resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from mmvssm.ops.routes import read_scan, route_set
from mmvssm.registry import MODELS

from .basic import ACTIVATIONS, DepthwiseConv, SqueezeExcite
from .checks import one_of
from .scans import Route, SelectiveScans, name_routes

SE_REDUCTION = 8


@MODELS.register_module()
class MS2D(SelectiveScans):
    """Multi-scale 2-D selective scan of `MSVMamba <https://arxiv.org/abs/2405.14174>`_.

    After a linear layer, two depthwise convolutions compute a full map and a small map of half the
    resolution. The full map is scanned along ``scan``. The small map is scanned along the routes of
    ``half_scan``, joined to one sequence, and resized. The sum of both passes through
    squeeze-and-excitation, an optional gate and a linear layer. Defaults are those of the first
    version.

    Args:
        embed_dims: Channels C of input and output.
        d_state: States N per channel.
        ssm_ratio: Inner width ``Di = int(ssm_ratio * C)``.
        dt_rank: Rank R of the step projection; None for ``ceil(C / 16)``.
        d_conv: Kernel size of the convolution of the full map, an odd number.
        small_conv: Kernel size of the convolution that halves the resolution (rounding up), an odd
            number.
        act: Activation after both: ``'silu'``, ``'gelu'`` or ``'relu'``.
        scan: Routes of the full map; see :class:`mmvssm.models.SS2D`.
        half_scan: Routes of the small map; see :class:`mmvssm.models.SS2D`. They share one set of
            parameters, and the state is carried from each to the next.
        gate: Compute Di gate channels in the input layer; the output is multiplied by ``act`` of
            them.
        norm_position: ``'before_sum'`` normalises the output of each route, ``'after_sum'`` their
            sum.
        upsample: How the small map is resized: ``'bilinear'`` or ``'nearest'``.
        full_first: Whether the scan of the full map uses the first parameter sets and that of the
            small map the last one, instead of the reverse.
        force_fp32: See :class:`SelectiveScans`.
        ssm_init: See :class:`SelectiveScans`.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is not one of its choices, a kernel size is even, or the inner
            width is below 8, the reduction of the squeeze-and-excitation.
    """

    def __init__(
        self,
        embed_dims: int,
        d_state: int = 1,
        ssm_ratio: float = 2.0,
        dt_rank: int | None = None,
        d_conv: int = 3,
        small_conv: int = 7,
        act: str = "silu",
        scan: str | Sequence[str] | Callable = "rows",
        half_scan: str | Sequence[str] | Callable = ("h_flip", "v", "v_flip"),
        gate: bool = True,
        norm_position: str = "before_sum",
        upsample: str = "bilinear",
        full_first: bool = False,
        force_fp32: bool = True,
        ssm_init: str = "v0",
        init_cfg: dict | list | None = None,
    ) -> None:
        inner = int(ssm_ratio * embed_dims)
        if inner < SE_REDUCTION:
            raise ValueError(
                f"int(ssm_ratio * embed_dims) must be at least {SE_REDUCTION}, got {inner}"
            )
        for name, side in dict(d_conv=d_conv, small_conv=small_conv).items():
            if side % 2 == 0:
                raise ValueError(f"{name} must be odd, got {side}")
        super().__init__(
            embed_dims,
            scan,
            d_state=d_state,
            ssm_ratio=ssm_ratio,
            dt_rank=dt_rank,
            extra_routes=1,
            force_fp32=force_fp32,
            ssm_init=ssm_init,
            init_cfg=init_cfg,
        )
        self.half_scan = read_scan(half_scan)
        self.norm_position = one_of("norm_position", norm_position, ("before_sum", "after_sum"))
        self.upsample = one_of("upsample", upsample, ("bilinear", "nearest"))
        self.full_first = full_first

        act = ACTIVATIONS[one_of("act", act, ACTIVATIONS)]
        self.in_proj = nn.Linear(embed_dims, 2 * inner if gate else inner, bias=False)
        self.gate_act = act() if gate else None
        self.conv2d = DepthwiseConv(inner, d_conv)
        self.small_conv2d = DepthwiseConv(inner, small_conv, stride=2)
        self.act = act()
        self.out_norm = nn.LayerNorm(inner, eps=1e-5)
        self.se = SqueezeExcite(inner, inner // SE_REDUCTION)
        self.out_proj = nn.Linear(inner, embed_dims, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``."""
        x, gate = self.in_proj(x), None
        dtype = x.dtype
        if self.gate_act is not None:
            x, gate = x.chunk(2, dim=-1)
            x = x.contiguous()  # one copy for both convolutions
        full = self._scan_full(self.act(self.conv2d(x)).contiguous()).to(dtype)
        small = self._scan_small(self.act(self.small_conv2d(x)).contiguous()).to(dtype)
        y = full + self._resize(small, full.shape[1:3])
        if self.norm_position == "after_sum":
            y = self._norm(y).to(dtype)
        y = self.se(y)
        if self.gate_act is not None:
            y = y * self.gate_act(gate)
        return self.out_proj(y)

    def _scan_full(self, x: Tensor) -> Tensor:
        """Scan the full map: ``(B, H, W, Di) -> (B, H, W, Di)`` in float32."""
        routes, first = self.routes_over(x), 0 if self.full_first else 1
        param_sets = slice(first, first + self.num_routes)
        if self.norm_position == "after_sum":
            y = self.run_scan(x.flatten(1, 2), routes, param_sets=param_sets)
        else:
            y = self.run_scan(x.flatten(1, 2), routes, merge="none", param_sets=param_sets)
            y = self._norm(y).sum(2)
        return y.view(x.shape)

    def _scan_small(self, x: Tensor) -> Tensor:
        """Scan the small map: ``(B, h, w, Di) -> (B, h, w, Di)`` in float32."""
        routes = route_set(self.half_scan, *x.shape[1:3], device=x.device)
        first = self.num_routes if self.full_first else 0
        param_sets = slice(first, first + 1)
        if self.norm_position == "after_sum":
            y = self.run_scan(x.flatten(1, 2), routes.joined, param_sets=param_sets)
        else:
            y = self.run_scan(x.flatten(1, 2), routes.joined_apart, param_sets=param_sets)
            y = self._norm(y.unflatten(1, (routes.num_routes, -1))).sum(1)
        return y.view(x.shape)

    def _norm(self, y: Tensor) -> Tensor:
        return self.out_norm(y.to(self.param_dtype))

    def _resize(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """``(B, h, w, Di) -> (B, H, W, Di)``; the permuted view has channels-last memory format."""
        x = F.interpolate(x.permute(0, 3, 1, 2), size=tuple(size), mode=self.upsample)
        return x.permute(0, 2, 3, 1)

    def name_routes(
        self, height: int, width: int, cls_positions: Sequence[int] = ()
    ) -> list[Route]:
        """Return the routes of the full map, then those of the small map as parts of one scan."""
        full = name_routes(self.scan, height, width)
        half = name_routes(self.half_scan, (height + 1) // 2, (width + 1) // 2)
        total = sum(len(route.steps) for route in half)
        first = 0
        found = [replace(route, name=f"full map: {route.name}") for route in full]
        for route in half:
            name = f"half map: {route.name}"
            found.append(replace(route, name=name, first=first, total=total))
            first += len(route.steps)
        return found
