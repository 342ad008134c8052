"""HalfScanMixer: the mixer of MambaVision, which scans one half of the channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvssm.registry import MODELS

from .basic import SequenceConv
from .scans import SelectiveScans


@MODELS.register_module()
class HalfScanMixer(SelectiveScans):
    """Mixer of `MambaVision <https://arxiv.org/abs/2407.08083>`_.

    A linear layer, a non-causal convolution and an activation come first. Then one half of the
    channels is scanned, and a linear layer combines both halves. The step bias is added twice, as
    in the published networks.

    Args:
        embed_dims: Channels C of input and output, an even number.
        d_state: States N per channel.
        dt_rank: Rank R of the step projection; None for ``ceil(C / 16)``.
        d_conv: Kernel size of the convolution, an odd number.
        scan: The routes; see :class:`mmvssm.models.SS2D`. ``'rows'`` is a single route.
        force_fp32: See :class:`SelectiveScans`.
        ssm_init: See :class:`SelectiveScans`.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is not one of its choices, ``embed_dims`` is odd or ``d_conv``
            even.
    """

    def __init__(
        self,
        embed_dims: int,
        d_state: int = 8,
        dt_rank: int | None = None,
        d_conv: int = 3,
        scan: str | Sequence[str] | Callable = "rows",
        force_fp32: bool = False,
        ssm_init: str = "linear",
        init_cfg: dict | list | None = None,
    ) -> None:
        if embed_dims % 2:
            raise ValueError(f"embed_dims must be even, to be split in halves, got {embed_dims}")
        if d_conv < 1 or d_conv % 2 == 0:
            raise ValueError(f"d_conv must be an odd number of at least 1, got {d_conv}")
        super().__init__(
            embed_dims,
            scan,
            d_state=d_state,
            ssm_ratio=0.5,
            dt_rank=dt_rank,
            force_fp32=force_fp32,
            ssm_init=ssm_init,
            init_cfg=init_cfg,
        )
        self.in_proj = nn.Linear(embed_dims, embed_dims, bias=False)
        self.conv1d = SequenceConv(embed_dims, d_conv, bias=False)
        self.out_proj = nn.Linear(embed_dims, embed_dims, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``."""
        routes = self.routes_over(x)
        h = F.silu(self.conv1d(self.in_proj(x).flatten(1, 2)))
        scanned, other = h.chunk(2, dim=-1)
        scanned = self.run_scan(scanned.contiguous(), routes).to(h.dtype)
        return self.out_proj(torch.cat([scanned, other], dim=-1)).view(x.shape)

    def scan_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the parameters of the op, with twice the step bias."""
        A, dt_weight, dt_bias, D = super().scan_parameters()
        # a sum, because the ONNX exporter of torch 2.11 fails on a parameter times a number
        return A, dt_weight, dt_bias + dt_bias, D
