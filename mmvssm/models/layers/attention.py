"""Self-attention over all pixels of a map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .checks import at_least


class Attention(nn.Module):
    """Multi-head self-attention over the pixels of a map, without position embedding.

    Args:
        embed_dims: Channels C.
        num_heads: Number of heads, which must divide C.

    Raises:
        ValueError: If an argument is below 1, or the heads do not divide the channels.
    """

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        at_least(1, embed_dims=embed_dims, num_heads=num_heads)
        if embed_dims % num_heads:
            raise ValueError(f"num_heads must divide the {embed_dims} channels, got {num_heads}")
        self.num_heads = num_heads
        self.width = embed_dims // num_heads
        # memory-efficient attention kernels need a head width divisible by 8
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
