"""MambaMixer: the mixer of the plain backbones, with a causal convolution along each route."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvssm.ops.routes import route_set
from mmvssm.registry import MODELS

from .basic import SequenceConv
from .checks import one_of
from .merges import RouteMerge
from .scans import SelectiveScans

MERGES = ("sum", "mean", "gated", "search")


@MODELS.register_module()
class MambaMixer(SelectiveScans):
    """Mixer of `Vim <https://arxiv.org/abs/2401.09417>`_ and LocalVim.

    A linear layer computes features and gate. Each route has its own causal convolution and
    selective scan. The outputs are gated, merged and passed through a linear layer. LocalVim is the
    plain backbone of `LocalMamba <https://arxiv.org/abs/2403.09338>`_.

    Args:
        embed_dims: Channels C of input and output.
        d_state: States N per channel.
        ssm_ratio: Inner width ``Di = int(ssm_ratio * C)``.
        dt_rank: Rank R of the step projection; None for ``ceil(C / 16)``.
        d_conv: Kernel size of the convolution.
        scan: Routes over the map of the tokens (see :class:`mmvssm.models.SS2D`):
            ``'bidirectional'`` (the sequence forward and backward), ``'rows'`` (forward only), or
            directions such as ``('h', 'v_flip', 'w7')``.
        merge: How the routes are merged: ``'sum'``, ``'mean'``, or LocalMamba's ``'gated'`` or
            ``'search'`` (see :class:`RouteMerge`).
        output_order: Where the outputs of directions go (see :func:`mmvssm.ops.routes.directions`).
        force_fp32: See :class:`SelectiveScans`.
        ssm_init: See :class:`SelectiveScans`.
        depth: Number of layers of the network; the initial ``out_proj`` is divided by its square
            root.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is not one of its choices, a direction is unknown, the inner
            width is zero, or ``output_order`` is given without directions.
    """

    def __init__(
        self,
        embed_dims: int,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        dt_rank: int | None = None,
        d_conv: int = 4,
        scan: str | Sequence[str] | Callable = "bidirectional",
        merge: str = "sum",
        output_order: str = "inverse",
        force_fp32: bool = False,
        ssm_init: str = "v0-first",
        depth: int = 1,
        init_cfg: dict | list | None = None,
    ) -> None:
        if d_conv < 1:
            raise ValueError(f"d_conv must be at least 1, got {d_conv}")
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
        self.depth = depth
        self.mean = one_of("merge", merge, MERGES) == "mean"
        self.merge = None
        if merge not in ("sum", "mean"):
            self.merge = RouteMerge(inner, self.num_routes, merge)
        self.in_proj = nn.Linear(embed_dims, 2 * inner, bias=False)
        self.conv1d = SequenceConv(self.num_routes * inner, d_conv, causal=True)
        self.out_proj = nn.Linear(inner, embed_dims, bias=False)
        self.reset_out_proj()

    @torch.no_grad()
    def reset_out_proj(self) -> None:
        """Initialise ``out_proj``."""
        self.out_proj.reset_parameters()
        self.out_proj.weight /= math.sqrt(self.depth)

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says; the scan and ``out_proj`` keep their own rules."""
        super().init_weights()
        self.reset_out_proj()

    def forward(
        self,
        x: Tensor,
        size: Sequence[int] | None = None,
        cls_positions: tuple[int, ...] = (),
    ) -> Tensor:
        """Mix the tokens of sequences.

        Args:
            x: ``(B, P, C)``.
            size: Map ``(H, W)`` of the tokens; None for a single row, except with directions.
            cls_positions: Indices of class tokens, which are not part of the map.

        Returns:
            ``(B, P, C)``.

        Raises:
            ValueError: If the size does not fit the sequence.
        """
        height, width = (1, x.shape[1] - len(cls_positions)) if size is None else size
        is_unknown = size is None and self.scan.directions
        if is_unknown or x.shape[1] != height * width + len(cls_positions):
            raise ValueError(
                f"size must be the map (H, W) of the {x.shape[1]} tokens of x, without"
                f" {len(cls_positions)} class token(s), got {size}"
            )
        routes = route_set(
            self.scan, height, width, device=x.device, cls_positions=tuple(cls_positions)
        )
        self.check_number(routes, height, width)
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        gate = F.silu(gate)
        u = routes.gather(x)
        u = F.silu(self.conv1d(u.flatten(2)).view(u.shape))
        # each route has a separate gate if outputs go to other tokens than were read
        separate = self.merge is not None or routes.writes_elsewhere
        y = self.run_scan(u, routes.by_step, merge="none" if separate else "sum")
        if routes.writes_elsewhere:
            y, gate = y * routes.by_written_row.gather(gate), None
        if self.merge is not None:
            y = self.merge(y, gate)
        elif gate is None:
            y = y.to(self.param_dtype).sum(2)
        else:
            y = (y * gate).to(self.param_dtype)
        if self.mean:
            y = y / self.num_routes
        return self.out_proj(y.to(x.dtype))
