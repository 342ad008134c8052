"""MambaMixer: the mixer of the plain backbones, scans of a sequence that convolve on their own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvssm.ops import routes
from mmvssm.registry import MODELS

from .checks import one_of
from .directions import MERGES as DIRECTION_MERGES
from .directions import OUTPUT_ORDERS, DirectionMerge, direction_tables
from .scans import SelectiveScans

#: Scans over the whole sequence, and their numbers of routes.
SEQUENCE_SCANS = {"bidirectional": 2, "forward": 1}
MERGES = (*DIRECTION_MERGES, "mean")


class CausalConv(nn.Conv1d):
    """Depthwise convolution of sequences: each step sees itself and the steps before it.

    Args:
        channels: Channels C.
        kernel_size: Steps that it sees.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size - 1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, L, C) -> (B, L, C)``, zeros standing before the first step."""
        # the permuted view is a map of one row in channels-last memory format
        x, length = x.transpose(1, 2)[:, :, None], x.shape[1]
        padding = (0, self.padding[0])
        y = F.conv2d(x, self.weight[:, :, None], self.bias, padding=padding, groups=self.groups)
        return y[:, :, 0, :length].transpose(1, 2)


def gather_tokens(x: Tensor, table: Tensor) -> Tensor:
    """Tokens of ``x (B, P, D)`` along routes ``(K, L)`` that visit each of them once.

    Returns:
        ``(B, L, K, D)``, zeros for the route's entries of -1.
    """
    num_tokens = x.shape[1]
    if table.shape[1] > num_tokens:  # the further steps are zero tokens
        x = F.pad(x, (0, 0, 0, 1))
        table = torch.where(table < 0, num_tokens, table)
    return x.index_select(1, table.t().flatten()).unflatten(1, (-1, len(table)))


@MODELS.register_module()
class MambaMixer(SelectiveScans):
    """Mixer of `Vim <https://arxiv.org/abs/2401.09417>`_ and plain `LocalMamba`_.

    Linear layer to features and gate; along each route a causal convolution and a selective scan
    of its own; gate, merge, linear layer.

    .. _LocalMamba: https://arxiv.org/abs/2403.09338

    Args:
        embed_dims: Channels C of input and output.
        d_state: States N per channel.
        ssm_ratio: Inner width ``Di = int(ssm_ratio * C)``.
        dt_rank: Rank R of the step projection; None for ``ceil(C / 16)``.
        d_conv: Steps that the convolution sees.
        scan: ``'bidirectional'`` (the sequence from its start and from its end),
            ``'forward'``, or any number of directions over the map of its tokens, such as
            ``('h', 'v_flip', 'w7')``, see :func:`mmvssm.ops.routes.directions`.
        merge: How the scans are added up: ``'sum'``, ``'mean'``, or as LocalMamba does,
            ``'gated'`` or ``'search'``, see :class:`DirectionMerge`.
        output_order: Where scans along directions put their output, see
            :func:`direction_tables`.
        force_fp32: See :class:`SelectiveScans`.
        ssm_init: See :class:`SelectiveScans`.
        depth: Layers of the network; ``out_proj`` starts divided by its square root.
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
        scan: str | Sequence[str] = "bidirectional",
        merge: str = "sum",
        output_order: str = "inverse",
        force_fp32: bool = False,
        ssm_init: str = "vim",
        depth: int = 1,
        init_cfg: dict | list | None = None,
    ) -> None:
        directions = None if isinstance(scan, str) else tuple(scan)
        if directions is None:
            one_of("scan", scan, SEQUENCE_SCANS)
            if output_order != "inverse":
                raise ValueError(
                    f"output_order needs directions as scan, got output_order={output_order!r} with"
                    f" scan={scan!r}"
                )
        else:
            if not directions:
                raise ValueError("scan must name at least one direction, got none")
            for name in directions:
                routes.check_direction(name)
        one_of("merge", merge, MERGES)
        one_of("output_order", output_order, OUTPUT_ORDERS)
        if d_conv < 1:
            raise ValueError(f"d_conv must be at least 1, got {d_conv}")
        inner = int(ssm_ratio * embed_dims)
        super().__init__(
            num_routes=SEQUENCE_SCANS[scan] if directions is None else len(directions),
            inner_dims=inner,
            d_state=d_state,
            dt_rank=math.ceil(embed_dims / 16) if dt_rank is None else dt_rank,
            force_fp32=force_fp32,
            ssm_init=ssm_init,
            init_cfg=init_cfg,
        )
        self.directions = directions
        self.output_order = output_order
        self.depth = depth
        self.mean = merge == "mean"
        self.merge = None
        if merge not in ("sum", "mean"):
            self.merge = DirectionMerge(inner, self.num_routes, merge)
        self.in_proj = nn.Linear(embed_dims, 2 * inner, bias=False)
        self.conv1d = CausalConv(self.num_routes * inner, d_conv)
        self.out_proj = nn.Linear(inner, embed_dims, bias=False)
        self.reset_out_proj()

    @torch.no_grad()
    def reset_out_proj(self) -> None:
        """Give ``out_proj`` its initial values."""
        self.out_proj.reset_parameters()
        self.out_proj.weight /= math.sqrt(self.depth)

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says; the scan and ``out_proj`` keep their own rules."""
        super().init_weights()
        self.reset_out_proj()

    def forward(
        self, x: Tensor, size: Sequence[int] | None = None, cls_position: int | None = None
    ) -> Tensor:
        """Mix the tokens of sequences.

        Args:
            x: ``(B, P, C)``.
            size: Map ``(H, W)`` of the tokens, needed for directions.
            cls_position: Index of a class token that is no part of the map, for directions.

        Returns:
            ``(B, P, C)``.

        Raises:
            ValueError: If the size does not fit the sequence.
        """
        table, target = self._tables(x, size, cls_position)
        x, z = self.in_proj(x).chunk(2, dim=-1)
        gate = F.silu(z)
        u = gather_tokens(x, table)
        u = F.silu(self.conv1d(u.flatten(2))).view(u.shape)
        steps = routes.rows(1, u.shape[1], device=u.device).expand(self.num_routes, -1)
        apart = self.merge is not None or self.output_order == "upstream"
        y = self.run_scan(
            u, steps, target=target, num_out=x.shape[1], merge="none" if apart else "sum"
        )
        if self.output_order == "upstream":
            y = y * gather_tokens(gate, _sources(table, target, x.shape[1]))
        else:
            y = y * (gate[:, :, None] if apart else gate)
        y = y.to(self.Ds.dtype)
        if self.merge is not None:
            y = self.merge(y)
        elif apart:
            y = y.sum(2)
        if self.mean:
            y = y / self.num_routes
        return self.out_proj(y.to(x.dtype))

    def _tables(
        self, x: Tensor, size: Sequence[int] | None, cls_position: int | None
    ) -> tuple[Tensor, Tensor]:
        """The routes, and the tokens that their steps write."""
        num_tokens, device = x.shape[1], x.device
        if self.directions is None:
            table = routes.forward_backward(num_tokens, device=device)[: self.num_routes]
            return table, table
        expected = math.prod(size or ()) + (cls_position is not None)
        if size is None or num_tokens != expected:
            raise ValueError(
                f"size must be the map (H, W) of the {num_tokens} tokens of x, less one for"
                f" cls_position={cls_position}, got {size}"
            )
        return direction_tables(
            self.directions, *size, self.output_order, cls_position=cls_position, device=device
        )


def _sources(table: Tensor, target: Tensor, num_tokens: int) -> Tensor:
    """The token ``(K, P)`` that each route read at the step that writes a token."""
    # an entry past the end takes what is written nowhere
    slot = torch.where(target < 0, num_tokens, target).long()
    sources = table.new_zeros(len(table), num_tokens + 1).scatter_(1, slot, table)
    return sources[:, :num_tokens]
