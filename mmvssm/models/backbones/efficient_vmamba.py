"""EfficientVMamba: atrous selective scans with a convolution branch, then inverted residuals.

`EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba
<https://arxiv.org/abs/2403.09977>`_
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmvssm.registry import MODELS

from ..layers import (
    SS2D,
    ChannelGate,
    CheckpointedBlock,
    DepthwiseConv,
    DropPath,
    MixerBlock,
    Mlp,
    PointwiseConv,
    SqueezeExcite,
    apply_norm,
    build_mixer,
    build_norm,
    check_mixer,
)
from ..layers.checks import one_of
from .hierarchical import HierarchicalBackbone

STAGE_TYPES = ("es2d", "inverted_residual")
#: Default arguments of this family's scans; the field ``mixer`` overrides single ones.
_ES2D = dict(scan="atrous", d_state=16, ssm_ratio=2.0, gate=True, conv_bias=True, force_fp32=True)


class ConvBranch(nn.Module):
    """Convolution branch: depthwise 3x3 convolution, batch norm, GELU, 1x1 convolution.

    Args:
        embed_dims: Channels C.
    """

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        self.dwconv = DepthwiseConv(embed_dims, 3)
        self.norm = build_norm("bn", embed_dims)
        self.pwconv = PointwiseConv(embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``."""
        return self.pwconv(F.gelu(apply_norm(self.norm, self.dwconv(x))))


class DualBranchMixer(BaseModule):
    """Sum of a selective scan and a convolution branch, with a shared channel gate on both.

    Args:
        embed_dims: Channels C.
        options: Arguments of :class:`mmvssm.models.SS2D`, or of another registered mixer, named by
            ``type``.
    """

    def __init__(self, embed_dims: int, options: Mapping) -> None:
        super().__init__()
        self.ss2d = build_mixer(SS2D, embed_dims, options)
        self.conv_branch = ConvBranch(embed_dims)
        self.gate = ChannelGate(embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``."""
        return self.gate(self.ss2d(x)) + self.gate(self.conv_branch(x))


class InvertedResidual(CheckpointedBlock):
    """Inverted residual block with squeeze-and-excitation of the expanded map.

    `MobileNetV2 <https://arxiv.org/abs/1801.04381>`_ and `Searching for MobileNetV3
    <https://arxiv.org/abs/1905.02244>`_

    Args:
        embed_dims: Channels C.
        expand_ratio: Hidden width as a multiple of C.
        se_ratio: Bottleneck of the squeeze-and-excitation as a fraction of the hidden width.
        drop_path: Drop-path rate.
        with_cp: Recompute the block in the backward pass to save memory.

    Raises:
        ValueError: If the ratios leave no channel in the bottleneck.
    """

    def __init__(
        self,
        embed_dims: int,
        expand_ratio: float = 4.0,
        se_ratio: float = 0.125,
        drop_path: float = 0.0,
        with_cp: bool = False,
    ) -> None:
        super().__init__(with_cp)
        hidden = int(embed_dims * expand_ratio)
        squeezed = int(hidden * se_ratio)
        if squeezed < 1:
            raise ValueError(
                f"expand_ratio and se_ratio must leave at least 1 of {embed_dims} channels,"
                f" got {expand_ratio} and {se_ratio}"
            )
        self.expand = PointwiseConv(embed_dims, hidden, bias=False)
        self.norm1 = build_norm("bn", hidden)
        self.dwconv = DepthwiseConv(hidden, 3, bias=False)
        self.norm2 = build_norm("bn", hidden)
        self.se = SqueezeExcite(hidden, squeezed, conv=True)
        self.project = PointwiseConv(hidden, embed_dims, bias=False)
        self.norm3 = build_norm("bn", embed_dims)
        self.drop_path = DropPath(drop_path)

    def _forward(self, x: Tensor) -> Tensor:
        y = F.relu(apply_norm(self.norm1, self.expand(x)))
        y = F.relu(apply_norm(self.norm2, self.dwconv(y)))
        return x + self.drop_path(apply_norm(self.norm3, self.project(self.se(y))))


@MODELS.register_module()
class EfficientVMamba(HierarchicalBackbone):
    """Backbone of `EfficientVMamba <https://arxiv.org/abs/2403.09977>`_.

    The first stages scan every second row and column from four offsets, beside a convolution
    branch. The last stages are inverted residuals.

    =========  ==================  ===========  ===========  =============
    ``arch``   widths              depths       parameters   published top-1
    =========  ==================  ===========  ===========  =============
    ``tiny``   48, 96, 192, 384    2, 2, 4, 2    6 493 660   76.5
    ``small``  64, 128, 256, 512   2, 2, 4, 2   11 273 688   78.7
    ``base``   96, 192, 384, 768   2, 2, 9, 2   33 717 136   81.8
    =========  ==================  ===========  ===========  =============

    Parameters include a head of 1000 classes. ``small`` is as wide as in the published training
    log; the published configs name 96 channels, which no released weights have.

    Args:
        arch: A name, or a dict of the fields below.

            - embed_dims (int | Sequence[int]): Width of the first stage, doubled from
              stage to stage, or the width of every stage. Required.
            - depths (Sequence[int]): Blocks per stage. Required.
            - stage_types (Sequence[str] | None): ``'es2d'`` (scan and convolution) or
              ``'inverted_residual'`` for every stage; None for ``'es2d'`` in the first two.
            - stem (str): ``'patch'`` (one 4x4 convolution, default) or ``'conv'`` (two 3x3
              convolutions).
            - downsample (str): ``'patch_merge'`` (concatenation of 2x2 pixels, norm, linear layer;
              default), ``'conv2'`` (2x2 convolution) or ``'conv3'`` (3x3).
            - patch_size (int): Downsampling factor of the stem. Default 4.
            - patch_norm (bool): Whether the stem has norms. Default True.
            - mixer (dict): Arguments of :class:`mmvssm.models.SS2D` that override those of the
              ``'es2d'`` stages: an atrous scan of 16 states, twice as wide as the map, with a
              gate and a bias in the convolution. Default ``{}``.
            - mlp_ratio (float): Hidden width of an MLP in ``'es2d'`` blocks as a multiple of the
              stage's; 0 (default) for none.
            - expand_ratio (float): Hidden width of inverted residuals as a multiple of the
              stage's. Default 4.
            - se_ratio (float): Bottleneck of their squeeze-and-excitation as a fraction of the
              hidden width. Default 0.125.
        in_channels: See :class:`HierarchicalBackbone`, as for all arguments that follow.
        drop_path_rate: Drop-path rate of the last block.
        out_indices: Stages whose maps are returned.
        out_norm: Whether each map passes through its own norm.
        frozen_stages: Stages up to which parameters are frozen; -1 for none.
        norm_eval: Keep batch norms in eval mode while training.
        with_cp: Recompute blocks in the backward pass to save memory.
        odd_size: ``'pad'``, or ``'crop'`` as in the authors' first release.
        init_cfg: Initialisation.
    """

    arch_settings: ClassVar[dict[str, dict]] = {
        "tiny": dict(embed_dims=48, depths=(2, 2, 4, 2)),
        "small": dict(embed_dims=64, depths=(2, 2, 4, 2)),
        "base": dict(embed_dims=96, depths=(2, 2, 9, 2)),
    }
    arch_defaults: ClassVar[dict] = dict(
        embed_dims=None,
        depths=None,
        stage_types=None,
        stem="patch",
        downsample="patch_merge",
        patch_size=4,
        patch_norm=True,
        mixer={},
        mlp_ratio=0.0,
        expand_ratio=4.0,
        se_ratio=0.125,
    )

    @classmethod
    def read_arch(cls, arch: str | Mapping) -> dict:
        """Return the fields of ``arch``, checked and with defaults filled in."""
        arch = super().read_arch(arch)
        check_mixer(arch["mixer"], SS2D)
        num_stages = len(arch["depths"])
        if arch["stage_types"] is None:
            arch["stage_types"] = [STAGE_TYPES[stage > 1] for stage in range(num_stages)]
        if len(arch["stage_types"]) != num_stages:
            raise ValueError(
                f"stage_types must name {num_stages} stages, as depths does,"
                f" got {arch['stage_types']}"
            )
        for kind in arch["stage_types"]:
            one_of("stage_types", kind, STAGE_TYPES)
        return arch

    def build_block(
        self, arch: dict, embed_dims: int, stage: int, layer: int, **options
    ) -> MixerBlock | InvertedResidual:
        """Build a block of the stage's type; see :meth:`HierarchicalBackbone.build_block`."""
        if arch["stage_types"][stage] == "inverted_residual":
            return InvertedResidual(embed_dims, arch["expand_ratio"], arch["se_ratio"], **options)
        mixer, mlp = DualBranchMixer(embed_dims, {**_ES2D, **arch["mixer"]}), None
        if arch["mlp_ratio"] > 0:
            mlp = Mlp(embed_dims, int(arch["mlp_ratio"] * embed_dims))
        return MixerBlock(embed_dims, mixer, mlp, **options)
