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

    Linear layer, convolution that sees both neighbours, and activation; one half of the channels is
    scanned, the other is not; linear layer of both. The step bias counts twice, as it does in the
    published networks.

    Args:
        embed_dims: Channels C of input and output, an even number.
        d_state: States N per channel.
        dt_rank: Rank R of the step projection; None for ``ceil(C / 16)``.
        d_conv: Odd number of steps that the convolution sees.
        scan: The routes, see :class:`mmvssm.models.SS2D`; ``'rows'`` for a single one.
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
            raise ValueError(f"embed_dims must be even to be halved, got {embed_dims}")
        if d_conv < 1 or d_conv % 2 == 0:
            raise ValueError(f"d_conv must be odd to see both neighbours, got {d_conv}")
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
        """As in :class:`SelectiveScans`, with twice the bias of the steps."""
        A, dt_weight, dt_bias, D = super().scan_parameters()
        # a sum, as the ONNX exporter of torch 2.11 fails at a parameter times a number
        return A, dt_weight, dt_bias + dt_bias, D
