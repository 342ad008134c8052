"""RouteMerge: LocalMamba's merge of the outputs of several scans."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .basic import ChannelGate
from .checks import one_of

#: The directions of LocalMamba's search, in the order of its parameters.
SEARCH_DIRECTIONS = ("h", "h_flip", "v", "v_flip", "w2", "w2_flip", "w7", "w7_flip")
KINDS = ("gated", "search")


def top_directions(probabilities: Tensor, count: int) -> list[int]:
    """Return the ascending indices of the ``count`` largest probabilities ``(K,)``.

    LocalMamba's search chooses the directions of a layer in this way.
    """
    return sorted(probabilities.argsort(descending=True, stable=True)[:count].tolist())


class RouteMerge(nn.Module):
    """Merge of the outputs of several scans into one map, as in `LocalMamba`_.

    Channel attention, shared by the routes, weights each output. ``'gated'`` then sums the outputs.
    ``'search'``, for the super-network, normalises each output and weights it by the learned
    probability of its route before the sum.

    .. _LocalMamba: https://arxiv.org/abs/2403.09338

    Args:
        channels: Channels D.
        num_routes: Number of outputs K.
        kind: ``'gated'`` or ``'search'``.

    Raises:
        ValueError: If ``kind`` is unknown.
    """

    def __init__(self, channels: int, num_routes: int, kind: str) -> None:
        super().__init__()
        one_of("merge", kind, KINDS)
        self.attn = ChannelGate(channels)
        self.weights = None
        if kind == "search":
            self.weights = nn.Parameter(1e-3 * torch.randn(num_routes, 1, 1, 1))

    def probabilities(self) -> Tensor:
        """Return the search's probability of each route, ``(K,)``."""
        return self.weights.flatten().softmax(0)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, P, K, D) -> (B, P, D)``."""
        x = self.attn(x, dim=1)
        if self.weights is not None:
            x = F.layer_norm(x, x.shape[-1:], eps=1e-5) * self.probabilities()[:, None]
        return x.sum(2)
