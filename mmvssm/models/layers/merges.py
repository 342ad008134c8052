"""RouteMerge: how LocalMamba makes one map of the outputs of several scans."""

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

    That is how LocalMamba's search chooses the directions of a layer.
    """
    return sorted(probabilities.argsort(descending=True, stable=True)[:count].tolist())


class RouteMerge(nn.Module):
    """One map from the outputs of several scans, as `LocalMamba`_ does.

    A channel attention shared by the routes weighs each output; ``'gated'`` adds them up, the
    super-net's ``'search'`` norms each and weighs it with its route's learned probability.

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
