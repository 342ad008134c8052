"""SS2D: the mixer of VMamba, selective scans of a map along several routes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvssm.ops import routes
from mmvssm.registry import MODELS

from .basic import ACTIVATIONS, DepthwiseConv
from .checks import one_of
from .directions import OUTPUT_ORDERS, DirectionMerge, direction_tables
from .scans import SelectiveScans

NUM_ROUTES = 4
ROUTE_TABLES = {
    "cross2d": routes.cross2d,
    "unidi": routes.unidi,
    "bidi": routes.bidi,
    "atrous": routes.atrous,
}
SCANS = (*ROUTE_TABLES, "cascade")


class _SpatialSoftmax(nn.Module):
    """Softmax over all pixels of each channel of ``(B, H, W, C)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2).softmax(1).view_as(x)


#: What follows the scan: published models use the layer norm, the others are ablations.
OUT_NORMS = {
    "layernorm": lambda dim: nn.LayerNorm(dim, eps=1e-5),
    "none": lambda dim: nn.Identity(),
    "dwconv3": lambda dim: DepthwiseConv(dim, 3, bias=False),
    "cnorm": lambda dim: nn.Sequential(
        nn.LayerNorm(dim, eps=1e-5), DepthwiseConv(dim, 3, bias=False)
    ),
    "softmax": lambda dim: _SpatialSoftmax(),
    "sigmoid": lambda dim: nn.Sigmoid(),
}


@MODELS.register_module()
class SS2D(SelectiveScans):
    """2-D selective scan of `VMamba <https://arxiv.org/abs/2401.10166>`_.

    Linear layer in, depthwise convolution and activation, selective scans along
    routes over the map added up, norm, optional gate, linear layer out.

    Args:
        embed_dims: Channels C of input and output.
        d_state: States N per channel.
        ssm_ratio: Inner width ``Di = int(ssm_ratio * C)``.
        dt_rank: Rank R of the step projection; None for ``ceil(C / 16)``.
        d_conv: Odd side of the depthwise convolution; below 2 there is none.
        conv_bias: Whether that convolution has a bias.
        act: Activation after it: ``'silu'``, ``'gelu'`` or ``'relu'``.
        scan: ``'cross2d'`` (rows, columns and both reversed), ``'unidi'`` (rows, four
            times), ``'bidi'`` (rows and reversed rows, twice each), ``'cascade'``
            (each row both ways, then each column both ways, layer norms before both),
            ``'atrous'`` (every second row and column from four offsets, of
            `EfficientVMamba <https://arxiv.org/abs/2403.09977>`_), or any number of
            directions such as ``('h', 'v_flip', 'w7')``, see
            :func:`mmvssm.ops.routes.directions`.
        merge: How the scans along directions are added up: ``'sum'``, or as
            `LocalMamba <https://arxiv.org/abs/2403.09338>`_ does, see :class:`DirectionMerge`.
        output_order: Where scans along directions put their output, see
            :func:`direction_tables`.
        cascade_flip: In the cascade, add the reversed scan at the pixels it read. False
            adds it unflipped, as the published code does.
        scalar_decay: One decay per head instead of per channel and state, with R heads
            of ``Di / R`` channels and no step projection ("m0").
        gate: Widen the input layer by Di channels that multiply the scan's output.
        gate_act: Whether the gate passes through ``act``.
        out_norm: What follows the scan: ``'layernorm'``, ``'none'``, ``'dwconv3'``
            (depthwise convolution), ``'cnorm'`` (layer norm, then that convolution),
            ``'softmax'`` (over all pixels) or ``'sigmoid'``.
        out_act: Whether a GELU follows ``out_norm``.
        force_fp32: Cast the scan's inputs to float32 under autocast. False leaves them in
            autocast's precision; state and output of the scan are float32 either way.
        ssm_init: Initial values of the scan's parameters: ``'v0'`` (as Mamba: decays
            1..N, log-uniform steps), ``'v1'`` (normal) or ``'v2'`` (zero and uniform).
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is not one of its choices, the inner width is zero,
            ``d_conv`` is even, the heads of ``scalar_decay`` do not divide the width, or
            ``merge`` or ``output_order`` are given without directions.
    """

    def __init__(
        self,
        embed_dims: int,
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        dt_rank: int | None = None,
        d_conv: int = 3,
        conv_bias: bool = False,
        act: str = "silu",
        scan: str | Sequence[str] = "cross2d",
        merge: str = "sum",
        output_order: str = "inverse",
        cascade_flip: bool = False,
        scalar_decay: bool = False,
        gate: bool = False,
        gate_act: bool = True,
        out_norm: str = "layernorm",
        out_act: bool = False,
        force_fp32: bool = False,
        ssm_init: str = "v0",
        init_cfg: dict | list | None = None,
    ) -> None:
        inner = int(ssm_ratio * embed_dims)
        if inner < 1:
            raise ValueError(f"int(ssm_ratio * embed_dims) must be at least 1, got {inner}")
        if d_conv > 1 and d_conv % 2 == 0:
            raise ValueError(f"d_conv must be odd to keep the map's size, got {d_conv}")
        self.directions = None if isinstance(scan, str) else tuple(scan)
        super().__init__(
            num_routes=NUM_ROUTES if self.directions is None else len(self.directions),
            inner_dims=inner,
            d_state=d_state,
            dt_rank=math.ceil(embed_dims / 16) if dt_rank is None else dt_rank,
            scalar_decay=scalar_decay,
            force_fp32=force_fp32,
            ssm_init=ssm_init,
            init_cfg=init_cfg,
        )
        self.merge = None
        if self.directions is None:
            one_of("scan", scan, SCANS)
            if merge != "sum" or output_order != "inverse":
                raise ValueError(
                    f"merge and output_order need directions as scan, got merge={merge!r} and"
                    f" output_order={output_order!r} with scan={scan!r}"
                )
        else:
            for name in self.directions:
                routes.check_direction(name)
            one_of("output_order", output_order, OUTPUT_ORDERS)
            if merge != "sum":
                self.merge = DirectionMerge(inner, self.num_routes, merge)
        self.scan = scan
        self.output_order = output_order
        self.cascade_flip = cascade_flip

        act = ACTIVATIONS[one_of("act", act, ACTIVATIONS)]
        self.in_proj = nn.Linear(embed_dims, 2 * inner if gate else inner, bias=False)
        self.gate_act = (act() if gate_act else nn.Identity()) if gate else None
        self.conv2d = DepthwiseConv(inner, d_conv, conv_bias) if d_conv > 1 else nn.Identity()
        self.act = act()
        self.out_norm = OUT_NORMS[one_of("out_norm", out_norm, OUT_NORMS)](inner)
        self.out_act = nn.GELU() if out_act else nn.Identity()
        self.out_proj = nn.Linear(inner, embed_dims, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``."""
        gate = None
        x = self.in_proj(x)
        if self.gate_act is not None:
            x, gate = x.chunk(2, dim=-1)
        x = self.act(self.conv2d(x)).contiguous()
        if self.directions is not None:
            y = self._scan_directions(x)
        elif self.scan == "cascade":
            y = self._scan_cascade(x)
        else:
            y = self._scan_routes(x)
        # a model cast to half precision as a whole keeps its norm in half precision
        y = self.out_act(self.out_norm(y.to(self.Ds.dtype)).to(x.dtype))
        if gate is not None:
            y = y * self.gate_act(gate)
        return self.out_proj(y)

    def _scan_routes(self, x: Tensor) -> Tensor:
        """Sum of the scans along the four routes over ``x (B, H, W, Di)``, in float32."""
        table = ROUTE_TABLES[self.scan](*x.shape[1:3], device=x.device)
        x_dbl = self._project_atrous(x) if self.scan == "atrous" else None
        return self.run_scan(x.flatten(1, 2), table, x_dbl).view(x.shape)

    def _project_atrous(self, x: Tensor) -> Tensor:
        """Projections of every pixel with the weights of the one route that visits it."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # B, H', row, W', column, Di
        weight = self.x_proj_weight.unflatten(0, (2, 2))  # column, row, R + 2N, Di
        x_dbl = torch.einsum("bhiwjd,jied->bhiwje", x, weight).flatten(3, 4).flatten(1, 2)
        return x_dbl[:, :height, :width].flatten(1, 2)[:, :, None]

    def _scan_directions(self, x: Tensor) -> Tensor:
        """Merged scans along the directions over ``x (B, H, W, Di)``, in float32."""
        table, target = direction_tables(
            self.directions, *x.shape[1:3], self.output_order, device=x.device
        )
        merge = "sum" if self.merge is None else "none"
        y = self.run_scan(x.flatten(1, 2), table, target=target, merge=merge)
        if self.merge is not None:
            y = self.merge(y.to(self.Ds.dtype))
        return y.view(x.shape)

    def _scan_cascade(self, x: Tensor) -> Tensor:
        """Rows as sequences of their own with routes 0 and 1, then columns with 2 and 3."""
        dtype = x.dtype
        for first in (0, 2):
            sequences = F.layer_norm(x, x.shape[-1:]).to(dtype).flatten(0, 1)
            table = routes.forward_backward(sequences.shape[1], device=x.device)
            target = table if self.cascade_flip else table[:1].expand(2, -1).contiguous()
            y = self.run_scan(sequences, table, target=target, used=slice(first, first + 2))
            x = y.view(x.shape).transpose(1, 2).contiguous()
        return x
