"""MSVMamba: VMamba with scans at two resolutions.

`Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model
<https://arxiv.org/abs/2405.14174>`_
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from mmvssm.registry import MODELS

from ..layers import MS2D, MixerBlock, Mlp, build_mixer, check_mixer
from .hierarchical import HierarchicalBackbone

_V3_MIXER = dict(
    ssm_ratio=1.0,
    gate=False,
    norm_position="after_sum",
    upsample="nearest",
    full_first=True,
    force_fp32=False,
)
_V3 = dict(stem="conv", downsample="conv3", mlp_ratio=4.0, mlp_norm="post", mixer=_V3_MIXER)


@MODELS.register_module()
class MSVMamba(HierarchicalBackbone):
    """Backbone of `MSVMamba <https://arxiv.org/abs/2405.14174>`_.

    ============  ==========  =============  ======================
    arch          embed_dims  depths         parameters, classifier
    ============  ==========  =============  ======================
    ``nano``      48          1, 2, 5, 2      6 864 136
    ``micro``     64          1, 2, 5, 2     11 879 272
    ``tiny``      96          1, 2, 9, 2     33 046 312
    ``v3-tiny``   96          2, 2, 9, 2     32 263 720
    ``v3-small``  96          2, 3, 20, 2    50 216 296
    ``v3-base``   128         2, 4, 18, 2    90 591 976
    ============  ==========  =============  ======================

    The first three are those of the paper. The later ``v3`` archs differ in stem, downsampling and
    order of norms; their mixers do not widen the map, their MLPs are twice as wide, and only
    ``v3-base`` has a gate.

    Args:
        arch: A name of the table, or a dict of the fields below. Defaults follow the paper.

            - embed_dims (int | Sequence[int]): Width of the first stage, doubled from
              stage to stage, or the width of every stage. Required.
            - depths (Sequence[int]): Blocks per stage. Required.
            - stem (str): ``'patch'`` (one 4x4 convolution, default) or ``'conv'`` (two 3x3).
            - downsample (str): ``'patch_merge'`` (concatenation of 2x2 pixels, norm, linear layer;
              default), ``'conv2'`` (2x2 convolution) or ``'conv3'`` (3x3).
            - mlp_ratio (float): Hidden width of the MLPs, which contain a convolution, as a
              multiple of the stage's; 0 for no MLP. Default 2.
            - mlp_norm (str): Norm before the MLP (``'pre'``, default) or after it (``'post'``).
            - mixer (dict): Arguments of :class:`mmvssm.models.MS2D` other than ``embed_dims``.
              Default ``{}``.
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
        "nano": dict(embed_dims=48, depths=(1, 2, 5, 2)),
        "micro": dict(embed_dims=64, depths=(1, 2, 5, 2)),
        "tiny": dict(embed_dims=96, depths=(1, 2, 9, 2)),
        "v3-tiny": dict(embed_dims=96, depths=(2, 2, 9, 2), **_V3),
        "v3-small": dict(embed_dims=96, depths=(2, 3, 20, 2), **_V3),
        "v3-base": dict(
            embed_dims=128, depths=(2, 4, 18, 2), **{**_V3, "mixer": dict(_V3_MIXER, gate=True)}
        ),
    }
    arch_defaults: ClassVar[dict] = dict(
        embed_dims=None,
        depths=None,
        stem="patch",
        downsample="patch_merge",
        mlp_ratio=2.0,
        mlp_norm="pre",
        mixer={},
    )

    @classmethod
    def read_arch(cls, arch: str | Mapping) -> dict:
        """Return the fields of ``arch``, checked and with defaults filled in."""
        arch = super().read_arch(arch)
        check_mixer(arch["mixer"], MS2D)
        return arch

    def build_block(
        self, arch: dict, embed_dims: int, stage: int, layer: int, **options
    ) -> MixerBlock:
        """Build MS2D, then an MLP; see :meth:`HierarchicalBackbone.build_block`."""
        mixer, mlp = build_mixer(MS2D, embed_dims, arch["mixer"]), None
        if arch["mlp_ratio"] > 0:
            mlp = Mlp(embed_dims, int(arch["mlp_ratio"] * embed_dims), dwconv=True)
        return MixerBlock(embed_dims, mixer, mlp, mlp_norm=arch["mlp_norm"], **options)
