"""MambaVision: stages of convolutions, then stages of scans and attention in windows.

`MambaVision: A Hybrid Mamba-Transformer Vision Backbone <https://arxiv.org/abs/2407.08083>`_
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mmvssm.registry import MODELS

from ..layers import (
    Attention,
    CheckpointedBlock,
    ConvDownsample,
    ConvStem,
    DropPath,
    HalfScanMixer,
    MapConv,
    MixerBlock,
    Mlp,
    apply_norm,
    build_layer_scale,
    build_mixer,
    build_norm,
    check_mixer,
    from_windows,
    to_windows,
)
from ..layers.checks import at_least
from .hierarchical import HierarchicalBackbone, Stage

#: Number of convolutional stages at the start; all others have windows.
CONV_STAGES = 2

_LARGE = dict(embed_dims=196, num_heads=(16, 32), layer_scale=1e-5)
_LARGE3 = dict(_LARGE, embed_dims=256, depths=(3, 3, 20, 10))


class BatchNormStem(ConvStem):
    """Stem of two 3x3 convolutions of stride 2, each followed by a batch norm and a ReLU.

    Args:
        in_channels: Channels of the image.
        hidden_dims: Output channels of the first convolution.
        embed_dims: Channels of the map.
    """

    def __init__(self, in_channels: int, hidden_dims: int, embed_dims: int) -> None:
        super().__init__(in_channels, embed_dims, norm="bn", hidden_dims=hidden_dims, bias=False)
        self.act = nn.ReLU()
        self.norm1.eps = self.norm2.eps = 1e-4

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, H', W', embed_dims)``; sides are a quarter, rounded up."""
        return self.act(super().forward(x))


class ConvBlock(CheckpointedBlock):
    """Residual block of two 3x3 convolutions with batch norms and a tanh GELU in between.

    Args:
        embed_dims: Channels C.
        layer_scale: Initial value of the branch's layer scale; None for no layer scale.
        drop_path: Drop-path rate.
        with_cp: Recompute the block in the backward pass to save memory.
    """

    def __init__(
        self,
        embed_dims: int,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        with_cp: bool = False,
    ) -> None:
        super().__init__(with_cp)
        self.conv1 = MapConv(embed_dims, embed_dims, 3, padding=1)
        self.norm1 = build_norm("bn", embed_dims)
        self.conv2 = MapConv(embed_dims, embed_dims, 3, padding=1)
        self.norm2 = build_norm("bn", embed_dims)
        self.layer_scale = build_layer_scale(embed_dims, layer_scale)
        self.drop_path = DropPath(drop_path)

    def _forward(self, x: Tensor) -> Tensor:
        y = apply_norm(self.norm1, self.conv1(x.permute(0, 3, 1, 2)))
        y = F.gelu(y, approximate="tanh")
        y = apply_norm(self.norm2, self.conv2(y.permute(0, 3, 1, 2)))
        return x + self.drop_path(self.layer_scale(y))


class WindowStage(Stage):
    """Stage whose blocks process each window separately, as a map of its own.

    State, attention and drop path do not cross the borders of a window.

    Args:
        blocks: Blocks ``(B, H, W, C) -> (B, H, W, C)``, applied to windows.
        downsample: Downsampling after the blocks; None in the last stage.
        window_size: Pixels per side of a window. The map is padded with zeros to full windows, and
            the padding takes part in all blocks of the stage.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], downsample: nn.Module | None, window_size: int
    ) -> None:
        super().__init__(blocks, downsample)
        self.window_size = window_size

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``."""
        windows = super().forward(to_windows(x, self.window_size))
        return from_windows(windows, (x.shape[1], x.shape[2]))


@MODELS.register_module()
class MambaVision(HierarchicalBackbone):
    """Backbone of `MambaVision <https://arxiv.org/abs/2407.08083>`_.

    The first two stages are convolutional. The others cut their maps into windows: the first half
    of the blocks (rounded up) scan them, the others apply attention.

    ==============  ==============  =======  =============  =======  ===========  =============
    ``arch``        widths          stem     depths         windows  parameters   top-1 (paper)
    ==============  ==============  =======  =============  =======  ===========  =============
    ``tiny``        80 to 640       32       1, 3, 8, 4     14, 7     31 794 248  82.3
    ``tiny2``       80 to 640       32       1, 3, 11, 4    14, 7     35 104 008  82.7
    ``small``       96 to 768       64       3, 3, 7, 5     14, 7     50 140 584  83.3
    ``base``        128 to 1024     64       3, 3, 10, 5    14, 7     97 685 288  84.2
    ``large``       196 to 1568     64       3, 3, 10, 5    14, 7    227 961 048  85.0
    ``large2``      196 to 1568     64       3, 3, 12, 5    14, 7    241 554 824  85.3
    ``large2-512``  196 to 1568     64       3, 3, 12, 5    32, 16   241 554 824  87.3
    ``large3-256``  256 to 2048     64       3, 3, 20, 10   16, 8    739 570 472  87.3
    ``large3-512``  256 to 2048     64       3, 3, 20, 10   32, 16   739 570 472  88.1
    ==============  ==============  =======  =============  =======  ===========  =============

    Parameters include a head of 1000 classes. The last three were pretrained on ImageNet-21k. At
    the image size of training, one window covers the entire map of its stage. Window sizes add no
    weights but change the function of a network, so keep those that it was trained with.
    Classifiers have a batch norm after the last stage (``out_norm='bn'``).

    Args:
        arch: A name, or a dict of the fields below.

            - embed_dims (int | Sequence[int]): Width of the first stage, doubled from
              stage to stage, or the width of every stage. Required.
            - depths (Sequence[int]): Blocks per stage. Required.
            - num_heads (Sequence[int]): Attention heads in each stage with windows.
              Default ``(8, 16)``.
            - window_sizes (Sequence[int]): Pixels per side of a window in each of these stages.
              Default ``(14, 7)``.
            - stem_dims (int): Channels between the two convolutions of the stem. Default 64.
            - layer_scale (float | None): Initial value of the layer scale in the stages with
              windows; None (default) for no layer scale.
            - conv_layer_scale (float | None): The same in the convolutional stages.
            - mlp_ratio (float): Hidden width of the MLPs as a multiple of the stage's. Default 4.
            - mixer (dict): Arguments of :class:`mmvssm.models.HalfScanMixer` other than
              ``embed_dims``. Default ``{}``.
        window_sizes: Field ``window_sizes``; None for that of ``arch``.
        in_channels: See :class:`HierarchicalBackbone`, as for all arguments that follow.
        drop_path_rate: Drop-path rate of the last block. In stages with windows each window of an
            image is dropped independently.
        out_indices: Stages whose maps are returned.
        out_norm: Whether each map passes through its own norm: True for a layer norm, or the kind.
        frozen_stages: Stages up to which parameters are frozen; -1 for none.
        norm_eval: Keep batch norms in eval mode while training.
        with_cp: Recompute blocks in the backward pass to save memory.
        init_cfg: Initialisation.

    Raises:
        ValueError: If ``num_heads`` or ``window_sizes`` do not match the number of stages, heads do
            not divide a width, or as in :class:`HierarchicalBackbone`.
    """

    arch_settings: ClassVar[dict[str, dict]] = {
        "tiny": dict(embed_dims=80, depths=(1, 3, 8, 4), stem_dims=32),
        "tiny2": dict(embed_dims=80, depths=(1, 3, 11, 4), stem_dims=32),
        "small": dict(embed_dims=96, depths=(3, 3, 7, 5)),
        "base": dict(embed_dims=128, depths=(3, 3, 10, 5), layer_scale=1e-5),
        "large": dict(_LARGE, depths=(3, 3, 10, 5)),
        "large2": dict(_LARGE, depths=(3, 3, 12, 5)),
        "large2-512": dict(_LARGE, depths=(3, 3, 12, 5), window_sizes=(32, 16)),
        "large3-256": dict(_LARGE3, window_sizes=(16, 8)),
        "large3-512": dict(_LARGE3, window_sizes=(32, 16)),
    }
    arch_defaults: ClassVar[dict] = dict(
        embed_dims=None,
        depths=None,
        num_heads=(8, 16),
        window_sizes=(14, 7),
        stem_dims=64,
        layer_scale=None,
        conv_layer_scale=None,
        mlp_ratio=4.0,
        mixer={},
    )

    def __init__(
        self,
        arch: str | Mapping = "tiny",
        window_sizes: Sequence[int] | None = None,
        in_channels: int = 3,
        drop_path_rate: float = 0.2,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        out_norm: bool | str = True,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        arch = self.read_arch(arch)
        if window_sizes is not None:
            arch = self.read_arch(dict(arch, window_sizes=window_sizes))
        super().__init__(
            arch,
            in_channels=in_channels,
            drop_path_rate=drop_path_rate,
            out_indices=out_indices,
            out_norm=out_norm,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )

    @classmethod
    def read_arch(cls, arch: str | Mapping) -> dict:
        """Return the fields of ``arch``, checked and with defaults filled in."""
        arch = super().read_arch(arch)
        check_mixer(arch["mixer"], HalfScanMixer)
        at_least(1, stem_dims=arch["stem_dims"])
        num_stages = max(len(arch["depths"]) - CONV_STAGES, 0)
        for name in ("num_heads", "window_sizes"):
            if not isinstance(arch[name], Sequence) or len(arch[name]) != num_stages:
                raise ValueError(
                    f"{name} must have one number for each of the {num_stages} stages with"
                    f" windows, got {arch[name]!r}"
                )
            at_least(1, **{f"{name}[{i}]": value for i, value in enumerate(arch[name])})
        return arch

    def build_stem(self, arch: dict, in_channels: int, embed_dims: int) -> BatchNormStem:
        """Build the batch-norm stem; see :meth:`HierarchicalBackbone.build_stem`."""
        return BatchNormStem(in_channels, arch["stem_dims"], embed_dims)

    def build_downsample(
        self, arch: dict, in_channels: int, out_channels: int, odd_size: str
    ) -> ConvDownsample:
        """Build a convolution without norm; see :meth:`HierarchicalBackbone.build_downsample`."""
        return ConvDownsample(in_channels, out_channels, norm=None, bias=False)

    def build_stage(
        self, arch: dict, stage: int, blocks: Sequence[nn.Module], downsample: nn.Module | None
    ) -> Stage:
        """Build the stage, with windows in the last ones; see the base class."""
        if stage < CONV_STAGES:
            return Stage(blocks, downsample)
        return WindowStage(blocks, downsample, arch["window_sizes"][stage - CONV_STAGES])

    def build_block(
        self, arch: dict, embed_dims: int, stage: int, layer: int, **options
    ) -> ConvBlock | MixerBlock:
        """Build a block of the stage's kind; see :meth:`HierarchicalBackbone.build_block`."""
        if stage < CONV_STAGES:
            return ConvBlock(embed_dims, arch["conv_layer_scale"], **options)
        depth, place = arch["depths"][stage], layer - sum(arch["depths"][:stage])
        if 2 * place < depth:
            mixer = build_mixer(HalfScanMixer, embed_dims, arch["mixer"])
        else:
            mixer = Attention(embed_dims, arch["num_heads"][stage - CONV_STAGES])
        mlp = Mlp(embed_dims, int(arch["mlp_ratio"] * embed_dims))
        return MixerBlock(embed_dims, mixer, mlp, layer_scale=arch["layer_scale"], **options)
