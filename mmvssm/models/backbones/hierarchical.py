"""Base class of the hierarchical backbones: stem, stages, downsampling, output norms."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import ClassVar

import torch
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from ..layers import (
    ConvDownsample,
    ConvStem,
    FreezeMixin,
    LoadingMixin,
    PatchEmbed,
    PatchMerging,
    apply_out_norm,
    build_out_norm,
    drop_parts,
)
from ..layers.checks import at_least, check_images, complete_arch, one_of, read_indices

STEMS = {"patch": PatchEmbed, "conv": ConvStem}
DOWNSAMPLES = ("patch_merge", "conv2", "conv3")

#: Truncated normal for linear layers, and unit norms. The bounds are 5 std: with far wider ones,
#: float32 rounding puts weights exactly on the bounds.
INIT_CFG = [
    dict(type="TruncNormal", layer="Linear", std=0.02, a=-0.1, b=0.1, bias=0.0),
    dict(type="Constant", layer="LayerNorm", val=1.0, bias=0.0),
]


class Stage(BaseModule):
    """Blocks of one width and the downsampling that follows them (None in the last stage)."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Apply the blocks without the downsampling: ``(B, H, W, C) -> (B, H, W, C)``."""
        for block in self.blocks:
            x = block(x)
        return x


class HierarchicalBackbone(LoadingMixin, FreezeMixin, BaseModule):
    """Backbone of stages on channels-last maps, with a downsampling after each but the last.

    A subclass declares its variants as data and builds its blocks in :meth:`build_block`. If its
    stem, stages or downsampling differ from those of this class, it overrides their builders, too.

    Attributes:
        arch_settings: Fields by name of the variant.
        arch_defaults: Default of every field. ``embed_dims`` and ``depths`` are required, ``norm``
            is optional; :meth:`build_stem` reads ``stem``, ``patch_norm`` and ``patch_size``, and
            :meth:`build_downsample` reads ``downsample``.

    Args:
        arch: A name of ``arch_settings``, or a dict of fields.
        in_channels: Channels of the image.
        drop_path_rate: Drop-path rate of the last block; it grows linearly from 0.
        out_indices: Stages whose output is returned, taken before the downsampling. Stages after
            the last of them are not built, and their weights in a checkpoint are ignored.
        out_norm: Whether every returned map passes through its own norm ``norm{i}``: True for a
            norm of the blocks' kind, or the kind. In any case the module ``norm{i}`` returns
            ``(B, C, H, W)``.
        frozen_stages: Stages, counted from 0, up to which parameters are frozen and modules
            kept in eval mode, together with the stem; -1 for none.
        norm_eval: Keep batch norms in eval mode while training.
        with_cp: Recompute blocks in the backward pass to save memory.
        odd_size: What ``'patch_merge'`` does with odd sides: ``'pad'`` with zeros, or ``'crop'``
            the last row or column.
        init_cfg: Initialisation; None for truncated normal linear layers and unit norms. The
            mixers' scan parameters are always initialised by their own rule, unless a checkpoint is
            loaded.

    Raises:
        ValueError: If ``arch`` or another argument is not one of its choices; in the forward
            pass, if the image has another number of channels or is too small.
    """

    arch_settings: ClassVar[dict[str, dict]]
    arch_defaults: ClassVar[dict]

    def __init__(
        self,
        arch: str | Mapping = "tiny",
        in_channels: int = 3,
        drop_path_rate: float = 0.1,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        out_norm: bool | str = True,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        odd_size: str = "pad",
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(INIT_CFG if init_cfg is None else init_cfg)
        arch = self.read_arch(arch)
        depths, norm = arch["depths"], arch.get("norm", "ln")
        num_stages = len(depths)
        dims = arch["embed_dims"]
        dims = [dims * 2**i for i in range(num_stages)] if isinstance(dims, int) else list(dims)
        if len(dims) != num_stages:
            raise ValueError(
                f"embed_dims must name {num_stages} widths, as depths does, got {dims}"
            )
        self.in_channels = in_channels
        self.embed_dims = dims
        self.out_indices = read_indices(out_indices, num_stages, "stages")
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self.check_frozen_stages(num_stages)

        self.patch_embed = self.build_stem(arch, in_channels, dims[0])
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.stages = ModuleList()
        # an unused stage would get no gradient, which DistributedDataParallel rejects
        num_built = max(self.out_indices) + 1
        for i, depth in enumerate(depths[:num_built]):
            first = sum(depths[:i])
            blocks = [
                self.build_block(arch, dims[i], i, layer, drop_path=rates[layer], with_cp=with_cp)
                for layer in range(first, first + depth)
            ]
            downsample = None
            if i < num_built - 1:
                downsample = self.build_downsample(arch, dims[i], dims[i + 1], odd_size)
            self.stages.append(self.build_stage(arch, i, blocks, downsample))
        kind = norm if out_norm is True else out_norm
        for i in self.out_indices:
            self.add_module(f"norm{i}", build_out_norm(kind or None, dims[i]))
        self.min_size = next(side for side in count(1) if self._last_size(side) > 0)
        self.freeze()

    @classmethod
    def read_arch(cls, arch: str | Mapping) -> dict:
        """Return the fields of ``arch``, checked and with defaults filled in."""
        arch = complete_arch(
            arch, cls.arch_settings, cls.arch_defaults, required=("embed_dims", "depths")
        )
        depths = arch["depths"]
        if not isinstance(depths, Sequence) or not depths:
            raise ValueError(f"depths must list the blocks of every stage, got {depths!r}")
        at_least(0, **{f"depths[{i}]": depth for i, depth in enumerate(depths)})
        at_least(1, patch_size=arch.get("patch_size", 4))
        return arch

    def build_stem(self, arch: dict, in_channels: int, embed_dims: int) -> nn.Module:
        """Build the stem: ``(B, in_channels, H, W) -> (B, H', W', C)``."""
        stem = STEMS[one_of("stem", arch["stem"], STEMS)]
        norm = arch.get("norm", "ln") if arch.get("patch_norm", True) else None
        return stem(in_channels, embed_dims, arch.get("patch_size", 4), norm=norm)

    def build_downsample(
        self, arch: dict, in_channels: int, out_channels: int, odd_size: str
    ) -> nn.Module:
        """Build the layer between two stages: ``(B, H, W, C) -> (B, H', W', C')``."""
        kind, norm = one_of("downsample", arch["downsample"], DOWNSAMPLES), arch.get("norm", "ln")
        if kind == "patch_merge":
            return PatchMerging(in_channels, out_channels, norm, odd_size)
        return ConvDownsample(in_channels, out_channels, int(kind[-1]), norm)

    def build_stage(
        self, arch: dict, stage: int, blocks: Sequence[nn.Module], downsample: nn.Module | None
    ) -> Stage:
        """Build a stage from its blocks and the downsampling after them."""
        return Stage(blocks, downsample)

    @abstractmethod
    def build_block(
        self, arch: dict, embed_dims: int, stage: int, layer: int, **options
    ) -> nn.Module:
        """Build one block, ``(B, H, W, C) -> (B, H, W, C)``.

        Args:
            arch: All fields.
            embed_dims: Channels C.
            stage: Index of its stage.
            layer: Index of the block in the network.
            **options: ``drop_path`` and ``with_cp`` of :class:`MixerBlock`.
        """

    def _last_size(self, side: int) -> int:
        """Return the side of the last stage's map for an image side; 0 if a map has no pixels."""
        side = self.patch_embed.output_size(side)
        for stage in self.stages[:-1]:
            side = stage.downsample.output_size(side) if side > 0 else 0
        return max(side, 0)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of the stages of ``out_indices``.

        Args:
            x: Images ``(B, in_channels, H, W)``.

        Returns:
            One contiguous map ``(B, C_i, H_i, W_i)`` per index, in ascending order of the stages.
        """
        reason = "the least for this arch and odd_size"
        check_images(x, self.in_channels, self.min_size, reason)
        x = self.embed(x)
        outs = []
        for i, stage in enumerate(self.stages):
            if i > 0:
                x = self.stages[i - 1].downsample(x)
            x = stage(x)
            if i in self.out_indices:
                outs.append(apply_out_norm(getattr(self, f"norm{i}"), x))
        return tuple(outs)

    def embed(self, x: Tensor) -> Tensor:
        """Compute the input of the first stage: ``(B, in_channels, H, W) -> (B, H', W', C)``."""
        return self.patch_embed(x)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Ignore the weights of stages that are not built."""
        last = len(self.stages) - 1
        drop_parts(state_dict, f"{prefix}stages.", last + 1)
        if self.stages[last].downsample is None:
            drop_parts(state_dict, f"{prefix}stages.{last}.downsample.")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def frozen_parts(self) -> Iterator[nn.Module | nn.Parameter]:
        """Yield the stem, stages and their output norms."""
        yield self.patch_embed
        yield from self.stages[: self.frozen_stages + 1]
        yield from (getattr(self, f"norm{i}") for i in self.out_indices if i <= self.frozen_stages)
