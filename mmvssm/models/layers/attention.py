"""Attention of every pixel to every other pixel of a map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .checks import at_least


class Attention(nn.Module):
    """Multi-head self-attention of the pixels of a map, without positions.

    Args:
        embed_dims: Channels C.
        num_heads: Heads, which divide the channels evenly.

    Raises:
        ValueError: If they do not, or a number is not at least 1.
    """

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        at_least(1, embed_dims=embed_dims, num_heads=num_heads)
        if embed_dims % num_heads:
            raise ValueError(f"num_heads must divide the {embed_dims} channels, got {num_heads}")
        self.num_heads = num_heads
        self.width = embed_dims // num_heads
        # other widths keep kernels away that do without the matrix of all pairs
        self.padding = -self.width % 8
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``."""
        width = self.width
        qkv = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.num_heads, width))
        if self.padding:
            qkv = F.pad(qkv, (0, self.padding))
        # each (B, heads, L, width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()
        y = F.scaled_dot_product_attention(query, key, value, scale=width**-0.5)[..., :width]
        return self.proj(y.transpose(1, 2).reshape(x.shape))
