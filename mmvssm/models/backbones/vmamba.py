"""VMamba: a hierarchical backbone of selective scans.

`VMamba: Visual State Space Model <https://arxiv.org/abs/2401.10166>`_
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import count
from typing import ClassVar

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule, ModuleList
from mmengine.utils import to_2tuple
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmvssm.registry import MODELS

from ..layers import (
    SS2D,
    ConvDownsample,
    ConvStem,
    Mlp,
    PatchEmbed,
    PatchMerging,
    apply_norm,
    build_norm,
)
from ..layers.checks import known_fields, one_of

STEMS = {"patch": PatchEmbed, "conv": ConvStem}
DOWNSAMPLES = ("merge", "conv2", "conv3")


class VMambaBlock(BaseModule):
    """Pre-norm residual block: SS2D, then an MLP; either may be absent.

    Args:
        embed_dims: Channels.
        mixer: Arguments of :class:`SS2D`, None for no mixer.
        mlp_ratio: Hidden width of the MLP over ``embed_dims``; 0 for no MLP.
        mlp_act: Activation of the MLP.
        gated_mlp: Whether the MLP is gated.
        norm: Kind of norm.
        drop_path: Drop-path rate of both branches.
        with_cp: Recompute the block in the backward pass to save memory.
    """

    def __init__(
        self,
        embed_dims: int,
        mixer: dict | None,
        mlp_ratio: float = 4.0,
        mlp_act: str = "gelu",
        gated_mlp: bool = False,
        norm: str = "ln",
        drop_path: float = 0.0,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.mixer = None if mixer is None else SS2D(embed_dims, **mixer)
        self.mlp = None
        self.drop_path = DropPath(drop_path)
        if self.mixer is not None:
            self.norm1 = build_norm(norm, embed_dims)
        if mlp_ratio > 0:
            self.norm2 = build_norm(norm, embed_dims)
            self.mlp = Mlp(embed_dims, int(mlp_ratio * embed_dims), mlp_act, gated_mlp)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``."""
        if self.with_cp and x.requires_grad:
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        if self.mixer is not None:
            x = x + self.drop_path(self.mixer(apply_norm(self.norm1, x)))
        if self.mlp is not None:
            x = x + self.drop_path(self.mlp(apply_norm(self.norm2, x)))
        return x


class VMambaStage(BaseModule):
    """Blocks of one width, and the downsampling that follows them (None in the last stage)."""

    def __init__(self, blocks: Sequence[VMambaBlock], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """The blocks alone: ``(B, H, W, C) -> (B, H, W, C)``."""
        for block in self.blocks:
            x = block(x)
        return x


_FIRST_RELEASE = dict(
    stem="patch",
    downsample="merge",
    mlp_ratio=0.0,
    mixer=dict(d_state=16, ssm_ratio=2.0, gate=True, conv_bias=True, force_fp32=True),
)


@MODELS.register_module()
class VMamba(BaseModule):
    """Backbone of `VMamba <https://arxiv.org/abs/2401.10166>`_.

    Args:
        arch: A name, or a dict of the fields below. Names: ``v0-tiny``, ``v0-small``,
            ``v0-base`` (first release: gated mixer of 16 states, no MLP);
            ``tiny-s2l5``, ``small-s2l15``, ``base-s2l15``, ``tiny-s1l8``,
            ``small-s1l20``, ``base-s1l20`` (second release: one state, no gate, MLP;
            ``s`` is the inner width ratio, ``l`` the depth of the third stage).

            - embed_dims (int | Sequence[int]): Width of the first stage, doubled from
              stage to stage, or the width of every stage. Required.
            - depths (Sequence[int]): Blocks per stage. Required.
            - stem (str): ``'conv'`` (two 3x3 convolutions, default) or ``'patch'`` (one
              4x4 convolution).
            - downsample (str): ``'conv3'`` (3x3 convolution, default), ``'conv2'`` (2x2)
              or ``'merge'`` (concatenation of 2x2 pixels, norm, linear layer).
            - patch_size (int): Pixels per side that the stem makes one. Default 4.
            - patch_norm (bool): Whether the stem has norms. Default True.
            - norm (str): ``'ln'`` (default; ``'ln2d'`` is the same function) or ``'bn'``,
              everywhere except inside the mixer.
            - mlp_ratio (float): Hidden width of the MLPs; 0 for none. Default 4.
            - mlp_act (str): ``'gelu'`` (default), ``'silu'`` or ``'relu'``.
            - gated_mlp (bool): Default False.
            - pos_embed (bool): Add a learned position embedding after the stem, resized
              bicubically where the map differs from ``img_size``. Default False.
            - mixer (dict | None): Arguments of :class:`mmvssm.models.SS2D` other than
              ``embed_dims``; None for blocks without mixer. Default ``{}``.
        in_channels: Channels of the image.
        drop_path_rate: Drop-path rate of the last block; it grows linearly from 0.
        out_indices: Stages whose last block output is returned, before the downsampling.
        out_norm: Whether every returned map passes its own norm ``norm{i}``.
        frozen_stages: Stages, counted from 0, up to which parameters are frozen and modules
            kept in eval mode, together with the stem; -1 for none.
        norm_eval: Keep batch norms in eval mode while training.
        with_cp: Recompute blocks in the backward pass to save memory.
        odd_size: What ``downsample='merge'`` does with odd sides: ``'pad'`` zeros or ``'crop'``
            the last row or column (as the first code of the authors).
        img_size: Image size ``S`` or ``(H, W)`` that a position embedding is made for.
        init_cfg: Initialisation; None for truncated normal linear layers and unit norms. The
            mixers' scan parameters always start from their own rule, unless a checkpoint is loaded.

    Raises:
        ValueError: If ``arch`` or another argument is not one of its choices; in the forward
            pass, if the image has other channels or is too small.
    """

    arch_settings: ClassVar[dict[str, dict]] = {
        "v0-tiny": dict(embed_dims=96, depths=(2, 2, 9, 2), **_FIRST_RELEASE),
        "v0-small": dict(embed_dims=96, depths=(2, 2, 27, 2), **_FIRST_RELEASE),
        "v0-base": dict(embed_dims=128, depths=(2, 2, 27, 2), **_FIRST_RELEASE),
        "tiny-s2l5": dict(embed_dims=96, depths=(2, 2, 5, 2), mixer=dict(ssm_ratio=2.0)),
        "small-s2l15": dict(embed_dims=96, depths=(2, 2, 15, 2), mixer=dict(ssm_ratio=2.0)),
        "base-s2l15": dict(embed_dims=128, depths=(2, 2, 15, 2), mixer=dict(ssm_ratio=2.0)),
        "tiny-s1l8": dict(embed_dims=96, depths=(2, 2, 8, 2)),
        "small-s1l20": dict(embed_dims=96, depths=(2, 2, 20, 2)),
        "base-s1l20": dict(embed_dims=128, depths=(2, 2, 20, 2)),
    }
    arch_defaults: ClassVar[dict] = dict(
        embed_dims=None,
        depths=None,
        stem="conv",
        downsample="conv3",
        patch_size=4,
        patch_norm=True,
        norm="ln",
        mlp_ratio=4.0,
        mlp_act="gelu",
        gated_mlp=False,
        pos_embed=False,
        mixer={},
    )

    def __init__(
        self,
        arch: str | dict = "v0-tiny",
        in_channels: int = 3,
        drop_path_rate: float = 0.1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        out_norm: bool = True,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        odd_size: str = "pad",
        img_size: int | Sequence[int] = 224,
        init_cfg: dict | list | None = None,
    ) -> None:
        if init_cfg is None:
            # bounds of 5 std: far ones let float32 rounding put whole weights onto a bound
            init_cfg = [
                dict(type="TruncNormal", layer="Linear", std=0.02, a=-0.1, b=0.1, bias=0.0),
                dict(type="Constant", layer="LayerNorm", val=1.0, bias=0.0),
            ]
        super().__init__(init_cfg)
        arch = self._read_arch(arch)
        depths, norm = arch["depths"], arch["norm"]
        num_stages = len(depths)
        dims = arch["embed_dims"]
        dims = [dims * 2**i for i in range(num_stages)] if isinstance(dims, int) else list(dims)
        if len(dims) != num_stages:
            raise ValueError(
                f"embed_dims must name {num_stages} widths, as depths does, got {dims}"
            )
        out_indices = tuple(out_indices)
        if not out_indices or any(i not in range(num_stages) for i in out_indices):
            raise ValueError(
                f"out_indices must hold stages 0 to {num_stages - 1}, got {out_indices}"
            )
        if frozen_stages not in range(-1, num_stages):
            raise ValueError(
                f"frozen_stages must be from -1 to {num_stages - 1}, got {frozen_stages}"
            )
        self.in_channels = in_channels
        self.embed_dims = dims
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval

        stem = STEMS[one_of("stem", arch["stem"], STEMS)]
        patch_size = arch["patch_size"]
        self.patch_embed = stem(
            in_channels, dims[0], patch_size, norm=norm if arch["patch_norm"] else None
        )
        self.pos_embed = None
        if arch["pos_embed"]:
            grid = [side // patch_size for side in to_2tuple(img_size)]
            self.pos_embed = nn.Parameter(torch.zeros(1, dims[0], *grid))

        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.stages = ModuleList()
        for i, depth in enumerate(depths):
            blocks = [
                VMambaBlock(
                    dims[i],
                    mixer=arch["mixer"],
                    mlp_ratio=arch["mlp_ratio"],
                    mlp_act=arch["mlp_act"],
                    gated_mlp=arch["gated_mlp"],
                    norm=norm,
                    drop_path=next(rates),
                    with_cp=with_cp,
                )
                for _ in range(depth)
            ]
            downsample = None
            if i < num_stages - 1:
                kind = one_of("downsample", arch["downsample"], DOWNSAMPLES)
                if kind == "merge":
                    downsample = PatchMerging(dims[i], dims[i + 1], norm, odd_size)
                else:
                    downsample = ConvDownsample(dims[i], dims[i + 1], int(kind[-1]), norm)
            self.stages.append(VMambaStage(blocks, downsample))
        for i in out_indices:
            self.add_module(f"norm{i}", build_norm(norm, dims[i]) if out_norm else nn.Identity())
        self.min_size = next(side for side in count(1) if self._last_size(side) > 0)
        self._freeze_stages()

    @classmethod
    def _read_arch(cls, arch: str | Mapping) -> dict:
        """The fields of ``arch``, checked and completed with their defaults."""
        if isinstance(arch, str):
            arch = cls.arch_settings[one_of("arch", arch, cls.arch_settings)]
        if not isinstance(arch, Mapping):
            raise ValueError(f"arch must be a name or a dict, got {type(arch).__name__}")
        known_fields("arch", arch, cls.arch_defaults)
        for name in ("embed_dims", "depths"):
            if arch.get(name) is None:
                raise ValueError(f"arch needs the field {name!r}, got only {', '.join(arch)}")
        arch = {**cls.arch_defaults, **arch}
        if arch["mixer"] is not None:
            arguments = [
                name for name in inspect.signature(SS2D).parameters if name != "embed_dims"
            ]
            known_fields("mixer", arch["mixer"], arguments)
        return arch

    def _last_size(self, side: int) -> int:
        """Side of the last stage's map for an image side; 0 where a map has no pixels."""
        side = self.patch_embed.output_size(side)
        for stage in self.stages[:-1]:
            side = stage.downsample.output_size(side) if side > 0 else 0
        return max(side, 0)

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says; the position embedding by a normal of std 0.02."""
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02, a=-0.1, b=0.1)
        super().init_weights()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the stages of ``out_indices``.

        Args:
            x: Images ``(B, in_channels, H, W)``.

        Returns:
            One contiguous ``(B, C_i, H_i, W_i)`` per index, in ascending order of the stages.
        """
        self._check_input(x)
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            x = x + self._resized_pos_embed(x.shape[1:3])
        outs = []
        for i, stage in enumerate(self.stages[: max(self.out_indices) + 1]):
            if i > 0:
                x = self.stages[i - 1].downsample(x)
            x = stage(x)
            if i in self.out_indices:
                out = apply_norm(getattr(self, f"norm{i}"), x)
                outs.append(out.permute(0, 3, 1, 2).contiguous())
        return tuple(outs)

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must be (B, {self.in_channels}, H, W), got {tuple(x.shape)}")
        height, width = x.shape[2:]
        if min(height, width) < self.min_size:
            raise ValueError(
                f"x must be at least {self.min_size}x{self.min_size} pixels for this arch and"
                f" odd_size, got {height}x{width}"
            )

    def _resized_pos_embed(self, size: Sequence[int]) -> Tensor:
        pos_embed = self.pos_embed
        if pos_embed.shape[2:] != tuple(size):
            pos_embed = F.interpolate(pos_embed, size=tuple(size), mode="bicubic")
        return pos_embed.permute(0, 2, 3, 1)

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed, *self.stages[: self.frozen_stages + 1]]
        frozen += [getattr(self, f"norm{i}") for i in self.out_indices if i <= self.frozen_stages]
        for module in frozen:
            module.eval()
            module.requires_grad_(False)
        if self.pos_embed is not None:
            self.pos_embed.requires_grad_(False)

    def train(self, mode: bool = True) -> VMamba:
        """Set the mode, except for what ``frozen_stages`` and ``norm_eval`` hold in eval mode."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self
