"""Scans along LocalMamba's directions: their tables, and how their outputs become one map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvssm.ops import routes

from .basic import ChannelGate
from .checks import one_of

#: The directions of LocalMamba's search, in the order of its parameters.
SEARCH_DIRECTIONS = ("h", "h_flip", "v", "v_flip", "w2", "w2_flip", "w7", "w7_flip")
MERGES = ("sum", "gated", "search")
OUTPUT_ORDERS = ("inverse", "upstream")


def direction_tables(
    names: tuple[str, ...],
    height: int,
    width: int,
    output_order: str = "inverse",
    *,
    cls_position: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Where the scans along directions read, and where they put their output.

    Args:
        names: Directions, see :func:`mmvssm.ops.routes.directions`.
        height: Rows of the map.
        width: Columns of the map.
        output_order: ``'inverse'`` puts outputs where inputs were read. ``'upstream'`` does as
            LocalMamba's published code, which scrambles columns on maps of ``height != width``:
            only for results to be compared with that code.
        cls_position: See :func:`mmvssm.ops.routes.directions`.
        device: Device of the tables.

    Returns:
        Two int32 ``(len(names), L)``.

    Raises:
        ValueError: If a direction or ``output_order`` is unknown.
    """
    one_of("output_order", output_order, OUTPUT_ORDERS)
    options = dict(names=names, cls_position=cls_position, device=device)
    table = routes.directions(height, width, **options)
    if output_order == "inverse":
        return table, table
    return table, routes.directions_upstream_out_routes(height, width, **options)


def top_directions(probabilities: Tensor, count: int) -> list[int]:
    """Indices of the ``count`` largest probabilities ``(K,)``, in ascending order of the indices.

    That is how LocalMamba's search chooses the directions of a layer.
    """
    return sorted(probabilities.argsort(descending=True, stable=True)[:count].tolist())


class DirectionMerge(nn.Module):
    """One map from the outputs of several scans, as `LocalMamba`_ does.

    A channel attention shared by the directions weighs each output; ``'gated'`` adds them up, the
    super-net's ``'search'`` norms each and weighs it with its direction's learned probability.

    .. _LocalMamba: https://arxiv.org/abs/2403.09338

    Args:
        channels: Channels D.
        num_directions: Number of outputs K.
        kind: ``'gated'`` or ``'search'``.
    """

    def __init__(self, channels: int, num_directions: int, kind: str) -> None:
        super().__init__()
        one_of("merge", kind, MERGES[1:])
        self.attn = ChannelGate(channels)
        self.weights = None
        if kind == "search":
            self.weights = nn.Parameter(1e-3 * torch.randn(num_directions, 1, 1, 1))

    def probabilities(self) -> Tensor:
        """The search's probability of each direction, ``(K,)``."""
        return self.weights.flatten().softmax(0)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, P, K, D) -> (B, P, D)``."""
        x = self.attn(x, dim=1)
        if self.weights is not None:
            x = F.layer_norm(x, x.shape[-1:], eps=1e-5) * self.probabilities()[:, None]
        return x.sum(2)
