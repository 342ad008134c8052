"""LocalVMamba: a hierarchical backbone whose layers scan in directions found by a search.

`LocalMamba: Visual State Space Model with Windowed Selective Scan
<https://arxiv.org/abs/2403.09338>`_
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from mmvssm.registry import MODELS

from ..layers import SS2D, MixerBlock, build_mixer, check_mixer
from .hierarchical import HierarchicalBackbone
from .local_directions import LOCAL_VMAMBA_SMALL, LOCAL_VMAMBA_TINY, SEARCH, read_directions

#: Default arguments of the mixer where they differ from SS2D's.
_MIXER = dict(d_state=16, ssm_ratio=2.0, gate=True, conv_bias=True, force_fp32=True)
#: Arguments of the mixer that the directions determine.
_FIXED = ("scan", "merge", "output_order")


@MODELS.register_module()
class LocalVMamba(HierarchicalBackbone):
    """Backbone "LocalVMamba" of `LocalMamba <https://arxiv.org/abs/2403.09338>`_.

    Each layer scans the map in its own directions: along rows, along columns or window by window,
    forward or backward. Channel attention weights the scans before they are summed.

    ================  ==================  ============  ==========  =============
    ``arch``          widths              depths        parameters  published top-1
    ================  ==================  ============  ==========  =============
    ``tiny``          96, 192, 384, 768   2, 2, 9, 2    25 527 160  82.7
    ``small``         96, 192, 384, 768   2, 2, 27, 2   49 748 536  83.7
    ``tiny-search``   32, 64, 128, 256    2, 2, 9, 2     4 576 656
    ``small-search``  32, 64, 128, 256    2, 2, 27, 2    9 148 512
    ================  ==================  ============  ==========  =============

    Parameters include a head of 1000 classes. Training a ``-search`` network searches for the
    directions of its counterpart; ``tools/analysis_tools/search_result.py`` reads them out.

    Args:
        arch: A name, or a dict of the fields below.

            - embed_dims (int | Sequence[int]): Width of the first stage, doubled from
              stage to stage, or the width of every stage. Required.
            - depths (Sequence[int]): Blocks per stage. Required.
            - directions: Default of the argument ``directions``; None (default) for the four
              directions ``h h_flip w2 w2_flip`` in every layer.
            - stem (str): ``'patch'`` (one 4x4 convolution, default) or ``'conv'`` (two 3x3
              convolutions).
            - downsample (str): ``'patch_merge'`` (concatenation of 2x2 pixels, norm, linear layer,
              default), ``'conv2'`` or ``'conv3'`` (2x2 or 3x3 convolution).
            - patch_size (int): Downsampling factor of the stem. Default 4.
            - mixer (dict): Arguments of :class:`mmvssm.models.SS2D` that override those of the
              published networks. Default ``{}``.
        directions: Directions of each layer: a list of names such as
            ``['h', 'v_flip', 'w7', 'w7_flip']`` for every block of the network, see
            :func:`mmvssm.ops.routes.directions`; ``'search'`` for all eight directions of the
            search in every layer, merged by learned probabilities; None for those of ``arch``.
        output_order: ``'inverse'``, or ``'upstream'`` to reproduce the published code, which
            shuffles the pixels of columns unless the map is square; see
            :func:`mmvssm.ops.routes.directions`.
        in_channels: See :class:`HierarchicalBackbone`, as for all arguments that follow.
        drop_path_rate: Drop-path rate of the last block.
        out_indices: Stages whose maps are returned.
        out_norm: Whether each map passes through its own norm.
        frozen_stages: Stages up to which parameters are frozen; -1 for none.
        norm_eval: Keep batch norms in eval mode while training.
        with_cp: Recompute blocks in the backward pass to save memory.
        odd_size: ``'pad'`` or ``'crop'``.
        init_cfg: Initialisation.

    Raises:
        ValueError: If the directions do not fit the depth, differ in number from layer to layer or
            are unknown (the message says which layer), or as in :class:`HierarchicalBackbone`.
    """

    arch_settings: ClassVar[dict[str, dict]] = {
        "tiny": dict(embed_dims=96, depths=(2, 2, 9, 2), directions=LOCAL_VMAMBA_TINY),
        "small": dict(embed_dims=96, depths=(2, 2, 27, 2), directions=LOCAL_VMAMBA_SMALL),
        "tiny-search": dict(embed_dims=32, depths=(2, 2, 9, 2), directions=SEARCH),
        "small-search": dict(embed_dims=32, depths=(2, 2, 27, 2), directions=SEARCH),
    }
    arch_defaults: ClassVar[dict] = dict(
        embed_dims=None,
        depths=None,
        directions=None,
        stem="patch",
        downsample="patch_merge",
        patch_size=4,
        mixer={},
    )

    def __init__(
        self,
        arch: str | Mapping = "tiny",
        directions: str | Sequence[Sequence[str]] | None = None,
        output_order: str = "inverse",
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
        check_mixer(arch["mixer"], SS2D, _FIXED)
        arch["mixer"] = {**_MIXER, **arch["mixer"], "output_order": output_order}
        if directions is not None:
            arch["directions"] = directions
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

    def build_block(
        self, arch: dict, embed_dims: int, stage: int, layer: int, **options
    ) -> MixerBlock:
        """Build SS2D in the layer's directions; see :meth:`HierarchicalBackbone.build_block`."""
        directions, merge = read_directions(arch["directions"], sum(arch["depths"]))
        arguments = dict(arch["mixer"], scan=directions[layer], merge=merge)
        mixer = build_mixer(SS2D, embed_dims, arguments)
        return MixerBlock(embed_dims, mixer, **options)
