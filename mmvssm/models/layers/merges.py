"""RouteMerge: LocalMamba's merge of the outputs of several scans."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvssm.ops.merging import gated_sum, normalized_means

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

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Merge the outputs of scans.

        Args:
            x: ``(B, P, K, D)``.
            scale: Factors ``(B, P, D)`` of all outputs; None for ones.

        Returns:
            ``(B, P, D)``, float32 (float64).
        """
        norm = self.attn.norm
        means = normalized_means(x, norm.weight, norm.bias, scale, eps=norm.eps)
        gates = self.attn.select(means.to(norm.weight.dtype))
        if self.weights is None:
            return gated_sum(x, gates, scale)
        if scale is not None:
            x = x * scale[:, :, None]
        x = F.layer_norm(x * gates[:, None], x.shape[-1:], eps=1e-5)
        return (x * self.probabilities()[:, None]).sum(2)
