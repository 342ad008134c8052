"""SS2D: the mixer of VMamba, selective scans of a map along several routes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from mmvssm.registry import MODELS

from .basic import ACTIVATIONS, DepthwiseConv
from .checks import one_of
from .merges import RouteMerge
from .scans import SelectiveScans


class _SpatialSoftmax(nn.Module):
    """Softmax over all pixels of each channel of ``(B, H, W, C)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2).softmax(1).view_as(x)


#: Layers after the scan: published models use the layer norm, the others are ablations.
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
MERGES = ("sum", "gated", "search")


@MODELS.register_module()
class SS2D(SelectiveScans):
    """2-D selective scan of `VMamba <https://arxiv.org/abs/2401.10166>`_.

    A linear layer, a depthwise convolution and an activation come first. The sum of selective scans
    along several routes then passes through a norm, an optional gate and a linear layer.

    Args:
        embed_dims: Channels C of input and output.
        d_state: States N per channel.
        ssm_ratio: Inner width ``Di = int(ssm_ratio * C)``.
        dt_rank: Rank R of the step projection; None for ``ceil(C / 16)``.
        d_conv: Kernel size of the depthwise convolution, an odd number; none below 2.
        conv_bias: Whether the convolution has a bias.
        act: Activation after the convolution: ``'silu'``, ``'gelu'`` or ``'relu'``.
        scan: The routes, any number of them. A registered name: ``'cross2d'`` (rows, columns and
            both reversed), ``'unidi'`` (rows, four times), ``'bidi'`` (rows and reversed rows,
            twice each), ``'atrous'`` (every second row and column from four offsets, as in
            `EfficientVMamba <https://arxiv.org/abs/2403.09977>`_) or one of your own; a function
            of height and width that returns an int32 table ``(K, L)``; or directions such as
            ``('h', 'v_flip', 'w7')`` (see :func:`mmvssm.ops.routes.directions`).
        merge: How the routes are merged: ``'sum'``, or ``'gated'`` or ``'search'`` as in
            `LocalMamba <https://arxiv.org/abs/2403.09338>`_ (see :class:`RouteMerge`).
        output_order: Where the outputs of directions go (see :func:`mmvssm.ops.routes.directions`).
        gate: Compute Di gate channels in the input layer, which multiply the scan's output.
        gate_act: Whether the gate passes through ``act``.
        out_norm: Layer after the scan: ``'layernorm'``, ``'none'``, ``'dwconv3'``
            (depthwise convolution), ``'cnorm'`` (layer norm, then that convolution),
            ``'softmax'`` (over all pixels) or ``'sigmoid'``.
        out_act: Whether a GELU follows ``out_norm``.
        force_fp32: Cast the scan's inputs to float32 under autocast. False leaves them in
            autocast's precision; state and output of the scan are float32 in both cases.
        ssm_init: Initial values of the scan's parameters: ``'v0'`` (as in Mamba: decays
            1..N, log-uniform step sizes), ``'v1'`` (normal), ``'v2'`` (zero and uniform), or
            another name of :class:`SelectiveScans`.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is not one of its choices, the inner width is zero or
            ``d_conv`` is even.
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
        scan: str | Sequence[str] | Callable = "cross2d",
        merge: str = "sum",
        output_order: str = "inverse",
        gate: bool = False,
        gate_act: bool = True,
        out_norm: str = "layernorm",
        out_act: bool = False,
        force_fp32: bool = False,
        ssm_init: str = "v0",
        init_cfg: dict | list | None = None,
    ) -> None:
        if d_conv > 1 and d_conv % 2 == 0:
            raise ValueError(f"d_conv must be odd, to keep the size of the map, got {d_conv}")
        super().__init__(
            embed_dims,
            scan,
            output_order,
            d_state=d_state,
            ssm_ratio=ssm_ratio,
            dt_rank=dt_rank,
            force_fp32=force_fp32,
            ssm_init=ssm_init,
            init_cfg=init_cfg,
        )
        inner = self.inner_dims
        self.merge = None
        if one_of("merge", merge, MERGES) != "sum":
            self.merge = RouteMerge(inner, self.num_routes, merge)
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
        x, gate = self.in_proj(x), None
        if self.gate_act is not None:
            x, gate = x.chunk(2, dim=-1)
        x = self.act(self.conv2d(x)).contiguous()
        y = self.scan_map(x)
        y = self.out_act(self.out_norm(y.to(self.param_dtype)).to(x.dtype))
        if self.gate_act is not None:
            y = y * self.gate_act(gate)
        return self.out_proj(y)

    def scan_map(self, x: Tensor) -> Tensor:
        """Scan ``x (B, H, W, Di)`` and merge the routes; return float32 of the same shape."""
        routes = self.routes_over(x)
        if self.merge is None:
            return self.run_scan(x.flatten(1, 2), routes).view(x.shape)
        y = self.run_scan(x.flatten(1, 2), routes, merge="none")
        return self.merge(y).view(x.shape)
