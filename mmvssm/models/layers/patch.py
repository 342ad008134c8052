"""Stems and downsampling layers, which change the resolution in hierarchical backbones.

Stems take images ``(B, C, H, W)`` and return maps ``(B, H', W', C)``; downsampling layers are
channels-last. Each has an ``output_size`` method, so that a backbone can reject images that would
leave a map without pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvssm.ops.tracers import is_transformed, surely_equal

from .basic import StridedConv2d, apply_norm, build_norm
from .checks import one_of


def _conv_size(conv: nn.Conv2d, size: int) -> int:
    return (size + 2 * conv.padding[0] - conv.kernel_size[0]) // conv.stride[0] + 1


class MapConv(StridedConv2d):
    """Convolution of ``(B, C, H, W)`` that returns a channels-last map without a copy."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # A weight in another memory format would be converted on every call.
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, H', W', C')``."""
        if not is_transformed():  # vmap does not support memory formats
            x = x.contiguous(memory_format=torch.channels_last)
        return super().forward(x).permute(0, 2, 3, 1)


class PatchEmbed(nn.Module):
    """Patch embedding: a convolution without padding, then a norm; excess pixels are dropped.

    Args:
        in_channels: Channels of the image.
        embed_dims: Channels of the map.
        patch_size: Kernel size.
        norm: Kind of norm, None for none.
        stride: Stride; None for ``patch_size``.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        patch_size: int = 4,
        norm: str | None = "ln",
        stride: int | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = MapConv(in_channels, embed_dims, patch_size, stride=stride or patch_size)
        self.norm1 = build_norm(norm, embed_dims) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, H', W', embed_dims)``, where H' is :meth:`output_size` of H."""
        return apply_norm(self.norm1, self.conv1(x))

    def output_size(self, size: int) -> int:
        """Return the side of the map for an image side of ``size`` pixels."""
        return _conv_size(self.conv1, size)


class ConvStem(nn.Module):
    """Stem of two overlapping 3x3 convolutions of stride 2, with norms and a GELU in between.

    Args:
        in_channels: Channels of the image.
        embed_dims: Channels of the map.
        patch_size: Product of the two strides, which is 4. Use :class:`PatchEmbed` for other sizes.
        norm: Kind of norm, None for none.
        hidden_dims: Output channels of the first convolution; None for half of ``embed_dims``.
        bias: Whether the convolutions have biases.

    Raises:
        ValueError: If ``patch_size`` is not 4.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        patch_size: int = 4,
        norm: str | None = "ln",
        hidden_dims: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if patch_size != 4:
            raise ValueError(
                "patch_size must be 4 for a 'conv' stem, whose two convolutions have stride 2,"
                f" got {patch_size}; stem='patch' takes any size"
            )
        hidden = embed_dims // 2 if hidden_dims is None else hidden_dims
        options = dict(kernel_size=3, stride=2, padding=1, bias=bias)
        self.conv1 = MapConv(in_channels, hidden, **options)
        self.norm1 = build_norm(norm, hidden) if norm else nn.Identity()
        self.act = nn.GELU()
        self.conv2 = MapConv(hidden, embed_dims, **options)
        self.norm2 = build_norm(norm, embed_dims) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, H', W', embed_dims)``; sides are a quarter, rounded up."""
        x = self.act(apply_norm(self.norm1, self.conv1(x)))
        return apply_norm(self.norm2, self.conv2(x.permute(0, 3, 1, 2)))

    def output_size(self, size: int) -> int:
        """Return the side of the map for an image side of ``size`` pixels."""
        return _conv_size(self.conv2, _conv_size(self.conv1, size))


class PatchMerging(nn.Module):
    """Downsampling that concatenates 2x2 pixels, normalises them and projects them linearly.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        norm: Kind of norm.
        odd_size: What to do with an odd side: ``'pad'`` with a row or column of zeros at the end
            (which enter the norm), or ``'crop'`` the last row or column.
    """

    def __init__(
        self, in_channels: int, out_channels: int, norm: str = "ln", odd_size: str = "pad"
    ) -> None:
        super().__init__()
        self.odd_size = one_of("odd_size", odd_size, ("pad", "crop"))
        self.norm = build_norm(norm, 4 * in_channels)
        self.reduction = nn.Linear(4 * in_channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H', W', out_channels)``; H' is H/2, rounded up (pad) or down."""
        height, width = x.shape[1:3]
        rows, columns = self.output_size(height), self.output_size(width)
        if not (surely_equal(height, 2 * rows) and surely_equal(width, 2 * columns)):
            # negative padding crops
            x = F.pad(x, (0, 0, 0, 2 * columns - width, 0, 2 * rows - height))
        x = x.unflatten(2, (columns, 2)).unflatten(1, (rows, 2))  # B, H', row, W', column, C
        # channel blocks in the order (row, column) = (0,0), (1,0), (0,1), (1,1)
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(apply_norm(self.norm, x))

    def output_size(self, size: int) -> int:
        """Return the side of the output for an input side of ``size`` pixels."""
        return (size + 1) // 2 if self.odd_size == "pad" else size // 2


class ConvDownsample(nn.Module):
    """Downsampling by a convolution of stride 2, then a norm.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: 2 (no padding, rounds down) or 3 (padding 1, rounds up).
        norm: Kind of norm, None for none.
        bias: Whether the convolution has a bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        norm: str | None = "ln",
        bias: bool = True,
    ) -> None:
        super().__init__()
        one_of("kernel_size", kernel_size, (2, 3))
        padding = kernel_size - 2
        self.conv = MapConv(
            in_channels, out_channels, kernel_size, stride=2, padding=padding, bias=bias
        )
        self.norm = build_norm(norm, out_channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H', W', out_channels)``."""
        return apply_norm(self.norm, self.conv(x.permute(0, 3, 1, 2)))

    def output_size(self, size: int) -> int:
        """Return the side of the output for an input side of ``size`` pixels."""
        return _conv_size(self.conv, size)
