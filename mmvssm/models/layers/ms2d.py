"""MS2D: the mixer of MSVMamba, selective scans of a map and of its half-resolution copy."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from mmvssm.ops import routes
from mmvssm.registry import MODELS

from .basic import ACTIVATIONS, DepthwiseConv, SqueezeExcite
from .checks import one_of
from .scans import SelectiveScans

NUM_SETS = 2  # of scan parameters: full and half resolution
NUM_ORDERS = 3  # of the half-resolution scan
SE_REDUCTION = 8


@MODELS.register_module()
class MS2D(SelectiveScans):
    """Multi-scale 2-D selective scan of `MSVMamba <https://arxiv.org/abs/2405.14174>`_.

    Linear layer in; two depthwise convolutions of its output, of which one halves the
    resolution. The full map is scanned row by row, the small one in three orders as one
    sequence (rows reversed, columns, columns reversed) and resized; their sum passes a
    squeeze-and-excitation, an optional gate and a linear layer. Defaults are the first version's.

    Args:
        embed_dims: Channels C of input and output.
        d_state: States N per channel.
        ssm_ratio: Inner width ``Di = int(ssm_ratio * C)``.
        dt_rank: Rank R of the step projection; None for ``ceil(C / 16)``.
        d_conv: Odd side of the convolution of the full map.
        small_conv: Odd side of the convolution that halves the resolution, rounded up.
        act: Activation after both: ``'silu'``, ``'gelu'`` or ``'relu'``.
        gate: Widen the input layer by Di channels that multiply the output, after ``act``.
        norm_position: ``'before_sum'`` norms the scans' output at every step, thrice for a pixel of
            the small map, ``'after_sum'`` norms what they add up to.
        upsample: How the small map is resized: ``'bilinear'`` or ``'nearest'``.
        full_first: Whether the full map's scan has the first of the parameter sets, the small one's
            the last.
        force_fp32: See :class:`SelectiveScans`.
        ssm_init: See :class:`SelectiveScans`.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is not one of its choices, a convolution's side is even, or the
            inner width too small for its squeeze to an eighth.
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
            num_routes=NUM_SETS,
            inner_dims=inner,
            d_state=d_state,
            dt_rank=math.ceil(embed_dims / 16) if dt_rank is None else dt_rank,
            force_fp32=force_fp32,
            ssm_init=ssm_init,
            init_cfg=init_cfg,
        )
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
        gate = None
        x = self.in_proj(x)
        dtype = x.dtype
        if self.gate_act is not None:
            x, gate = x.chunk(2, dim=-1)
            x = x.contiguous()  # once for both convolutions
        full = self._scan_full(self.act(self.conv2d(x)).contiguous())
        small = self._scan_small(self.act(self.small_conv2d(x)).contiguous())
        if self.norm_position == "before_sum":
            full, small = self._norm(full).to(dtype), self._norm(small).sum(1).to(dtype)
        y = full + self._resize(small, full.shape[1:3])
        if self.norm_position == "after_sum":
            y = self._norm(y).to(dtype)
        y = self.se(y)
        if gate is not None:
            y = y * self.gate_act(gate)
        return self.out_proj(y)

    def _scan_full(self, x: Tensor) -> Tensor:
        """Row by row: ``(B, H, W, Di) -> (B, H, W, Di)`` in float32."""
        table = routes.rows(*x.shape[1:3], device=x.device)
        index = 0 if self.full_first else 1
        used = slice(index, index + 1)
        return self.run_scan(x.flatten(1, 2), table, used=used).view(x.shape)

    def _scan_small(self, x: Tensor) -> Tensor:
        """In three orders: ``(B, h, w, Di) -> (B, h, w, Di)`` in float32.

        Where visits are normed the orders stay apart: ``(B, 3, h, w, Di)``.
        """
        size = x.shape[1:3]
        table = routes.three_orders(*size, device=x.device)
        index = 1 if self.full_first else 0
        used = slice(index, index + 1)
        if self.norm_position == "after_sum":
            return self.run_scan(x.flatten(1, 2), table, used=used).view(x.shape)
        target = routes.three_orders(*size, apart=True, device=x.device)
        num_out = NUM_ORDERS * x.shape[1] * x.shape[2]
        y = self.run_scan(x.flatten(1, 2), table, target=target, num_out=num_out, used=used)
        return y.unflatten(1, (NUM_ORDERS, *size))

    def _norm(self, y: Tensor) -> Tensor:
        # a model cast to half precision as a whole keeps its norm in half precision
        return self.out_norm(y.to(self.Ds.dtype))

    def _resize(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """``(B, h, w, Di) -> (B, H, W, Di)``; the permuted view is channels-last memory format."""
        x = F.interpolate(x.permute(0, 3, 1, 2), size=tuple(size), mode=self.upsample)
        return x.permute(0, 2, 3, 1)
