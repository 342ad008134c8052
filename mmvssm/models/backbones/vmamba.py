"""VMamba: a hierarchical backbone of selective scans.

`VMamba: Visual State Space Model <https://arxiv.org/abs/2401.10166>`_
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from mmvssm.registry import MODELS

from ..layers import SS2D, MixerBlock, Mlp, PositionGrid, build_mixer, check_mixer
from .hierarchical import HierarchicalBackbone

_FIRST_RELEASE = dict(
    stem="patch",
    downsample="patch_merge",
    mlp_ratio=0.0,
    mixer=dict(d_state=16, ssm_ratio=2.0, gate=True, conv_bias=True, force_fp32=True),
)
_SCALAR_DECAY = dict(type="ScalarDecaySS2D", d_state=64, act="gelu", ssm_init="v2")


@MODELS.register_module()
class VMamba(HierarchicalBackbone):
    """Backbone of `VMamba <https://arxiv.org/abs/2401.10166>`_.

    ================  ====================  ============  ===========  =============
    ``arch``          widths                depths        parameters   published top-1
    ================  ====================  ============  ===========  =============
    ``v0-tiny``       96, 192, 384, 768     2, 2, 9, 2    22 893 448   82.2
    ``v0-small``      96, 192, 384, 768     2, 2, 27, 2   44 417 416   83.5
    ``v0-base``       128, 256, 512, 1024   2, 2, 27, 2   76 254 056   83.7
    ``tiny-s2l5``     96, 192, 384, 768     2, 2, 5, 2    30 705 832   82.5
    ``small-s2l15``   96, 192, 384, 768     2, 2, 15, 2   50 147 752   83.6
    ``base-s2l15``    128, 256, 512, 1024   2, 2, 15, 2   88 557 800   83.9
    ``tiny-s1l8``     96, 192, 384, 768     2, 2, 8, 2    30 249 064   82.6
    ``small-s1l20``   96, 192, 384, 768     2, 2, 20, 2   49 012 840   83.3
    ``base-s1l20``    128, 256, 512, 1024   2, 2, 20, 2   86 614 504   83.8
    ``tiny-0220``     96, 192, 384, 768     2, 2, 4, 2    32 484 904   82.5
    ``tiny-m2``       96, 192, 384, 768     2, 2, 4, 2    25 340 296   none
    ``small-m2``      96, 192, 384, 768     2, 2, 12, 2   39 079 816   none
    ``base-m2``       128, 256, 512, 1024   2, 2, 12, 2   67 527 528   none
    ================  ====================  ============  ===========  =============

    Parameters include a head of 1000 classes. ``v0`` is the first release: a gated mixer of 16
    states and no MLP. The others have one state, no gate and an MLP; ``s`` is the ratio of the
    mixer's inner width, ``l`` the depth of the third stage. ``tiny-0220`` was released in between,
    with one state and a gate. ``m2`` has 64 states and one decay per head, like Mamba-2; no results
    were published.

    Args:
        arch: A name of the table, or a dict of the fields below.

            - embed_dims (int | Sequence[int]): Width of the first stage, doubled from
              stage to stage, or the width of every stage. Required.
            - depths (Sequence[int]): Blocks per stage. Required.
            - stem (str): ``'conv'`` (two 3x3 convolutions, default) or ``'patch'`` (one
              convolution that cuts the image into patches).
            - downsample (str): ``'conv3'`` (3x3 convolution, default), ``'conv2'`` (2x2)
              or ``'patch_merge'`` (concatenation of 2x2 pixels, norm, linear layer).
            - patch_size (int): Downsampling factor of the stem. Default 4, the only choice for
              ``stem='conv'``.
            - patch_norm (bool): Whether the stem has norms. Default True.
            - norm (str): ``'ln'`` (default; ``'ln2d'`` is the same function) or ``'bn'``,
              everywhere except inside the mixer.
            - mlp_ratio (float): Hidden width of the MLPs as a multiple of the stage's; 0 for no
              MLP. Default 4.
            - mlp_act (str): ``'gelu'`` (default), ``'silu'`` or ``'relu'``.
            - gated_mlp (bool): Whether the MLPs are gated. Default False.
            - pos_embed (bool): Add a learned position embedding after the stem. It is resized
              bicubically if the map, or a checkpoint's grid, differs from that of ``img_size``.
              Default False.
            - mixer (dict | None): Arguments of :class:`mmvssm.models.SS2D` other than
              ``embed_dims``, or of another registered mixer, named by ``type``; None for
              blocks without a mixer. Default ``{}``.
        img_size: Image size ``S`` or ``(H, W)`` of the position embedding.
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
        "v0-tiny": dict(embed_dims=96, depths=(2, 2, 9, 2), **_FIRST_RELEASE),
        "v0-small": dict(embed_dims=96, depths=(2, 2, 27, 2), **_FIRST_RELEASE),
        "v0-base": dict(embed_dims=128, depths=(2, 2, 27, 2), **_FIRST_RELEASE),
        "tiny-s2l5": dict(embed_dims=96, depths=(2, 2, 5, 2), mixer=dict(ssm_ratio=2.0)),
        "small-s2l15": dict(embed_dims=96, depths=(2, 2, 15, 2), mixer=dict(ssm_ratio=2.0)),
        "base-s2l15": dict(embed_dims=128, depths=(2, 2, 15, 2), mixer=dict(ssm_ratio=2.0)),
        "tiny-s1l8": dict(embed_dims=96, depths=(2, 2, 8, 2)),
        "small-s1l20": dict(embed_dims=96, depths=(2, 2, 20, 2)),
        "base-s1l20": dict(embed_dims=128, depths=(2, 2, 20, 2)),
        "tiny-0220": dict(
            embed_dims=96,
            depths=(2, 2, 4, 2),
            mixer=dict(ssm_ratio=2.0, gate=True, force_fp32=True),
        ),
        "tiny-m2": dict(embed_dims=96, depths=(2, 2, 4, 2), mixer=_SCALAR_DECAY),
        "small-m2": dict(embed_dims=96, depths=(2, 2, 12, 2), mixer=_SCALAR_DECAY),
        "base-m2": dict(embed_dims=128, depths=(2, 2, 12, 2), mixer=_SCALAR_DECAY),
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
        arch: str | Mapping = "v0-tiny",
        img_size: int | Sequence[int] = 224,
        in_channels: int = 3,
        drop_path_rate: float = 0.1,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        out_norm: bool = True,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        odd_size: str = "pad",
        init_cfg: dict | list | None = None,
    ) -> None:
        arch = self.read_arch(arch)
        super().__init__(
            arch,
            in_channels=in_channels,
            drop_path_rate=drop_path_rate,
            out_indices=out_indices,
            out_norm=out_norm,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
            odd_size=odd_size,
            init_cfg=init_cfg,
        )
        self.pos_embed = None
        if arch["pos_embed"]:
            grid = [self.patch_embed.output_size(side) for side in to_2tuple(img_size)]
            if min(grid) < 1:
                raise ValueError(
                    "img_size must be large enough for a position embedding of one pixel, got"
                    f" {img_size} with patch_size={arch['patch_size']}"
                )
            self.positions = PositionGrid(tuple(grid))
            self.pos_embed = nn.Parameter(torch.zeros(1, self.embed_dims[0], *grid))
        self.freeze()

    @classmethod
    def read_arch(cls, arch: str | Mapping) -> dict:
        """Return the fields of ``arch``, checked and with defaults filled in."""
        arch = super().read_arch(arch)
        if arch["mixer"] is not None:
            check_mixer(arch["mixer"], SS2D)
        return arch

    def build_block(
        self, arch: dict, embed_dims: int, stage: int, layer: int, **options
    ) -> MixerBlock:
        """Build SS2D, then an MLP; see :meth:`HierarchicalBackbone.build_block`."""
        mixer = mlp = None
        if arch["mixer"] is not None:
            mixer = build_mixer(SS2D, embed_dims, arch["mixer"])
        if arch["mlp_ratio"] > 0:
            hidden = int(arch["mlp_ratio"] * embed_dims)
            mlp = Mlp(embed_dims, hidden, arch["mlp_act"], arch["gated_mlp"])
        return MixerBlock(embed_dims, mixer, mlp, norm=arch["norm"], **options)

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says, and the position embedding from a normal of std 0.02."""
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02, a=-0.1, b=0.1)
        super().init_weights()

    def embed(self, x: Tensor) -> Tensor:
        """Apply stem and position embedding: ``(B, in_channels, H, W) -> (B, H', W', C)``."""
        x = self.patch_embed(x)
        if self.pos_embed is None:
            return x
        table = self.pos_embed.flatten(2).transpose(1, 2)
        return x + self.positions.at(table, tuple(x.shape[1:3])).unflatten(1, x.shape[1:3])

    def frozen_parts(self) -> Iterator[nn.Module | nn.Parameter]:
        """Yield the position embedding together with the stem, stages and output norms."""
        yield from super().frozen_parts()
        pos_embed = getattr(self, "pos_embed", None)
        if pos_embed is not None:
            yield pos_embed

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Resize a position embedding of another image size first."""
        key = f"{prefix}pos_embed"
        table = state_dict.get(key)
        if table is not None and self.pos_embed is not None and table.dim() == 4:
            given = PositionGrid(tuple(table.shape[2:]))
            rows = given.at(table.flatten(2).transpose(1, 2), self.positions.grid)
            state_dict[key] = rows.transpose(1, 2).unflatten(2, self.positions.grid)
        super()._load_from_state_dict(state_dict, prefix, *args)
