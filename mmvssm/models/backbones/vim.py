"""Vim: a plain backbone of bidirectional selective scans.

`Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model
<https://arxiv.org/abs/2401.09417>`_
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import nn

from mmvssm.registry import MODELS

from ..layers import MambaMixer, build_mixer
from .plain import UNIT_RMS_NORM, PlainBackbone


@MODELS.register_module()
class Vim(PlainBackbone):
    """Backbone of `Vision Mamba <https://arxiv.org/abs/2401.09417>`_.

    Every layer scans the sequence of patches, which has the class token in its middle, forward and
    backward. The first release had ``cls_token='head'`` or ``'none'``, ``rope=True`` and
    ``divide_out=False``.

    =================  =====  ======  ======  ===========  =============
    ``arch``           width  layers  stride  parameters   published top-1
    =================  =====  ======  ======  ===========  =============
    ``tiny``             192      24      16    7 148 008  76.1
    ``small``            384      24      16   25 796 584  80.5
    ``base``             768      24      16   97 598 440  81.9
    ``tiny-stride8``     192      24       8    7 250 344  78.3
    ``small-stride8``    384      24       8   26 001 256  81.6
    ``base-stride8``     768      24       8   98 007 784  83.2
    =================  =====  ======  ======  ===========  =============

    Parameters are those of classifiers of 1000 classes at 224 x 224 pixels. Patches have 16 pixels.

    Args:
        arch: A name of the table, or a dict of the fields below.

            - embed_dims (int): Channels C. Required.
            - num_layers (int): Required.
            - patch_size (int): Side of a patch. Default 16.
            - stride (int | None): Pixels from patch to patch; None (default) for ``patch_size``.
            - cls_token (str): Position of the class token: ``'middle'`` (default), ``'head'``,
              ``'none'``, or ``'double'`` for one at each end.
            - pos_embed (bool): Add a learned position embedding. Default True.
            - rope (bool): Apply a rotary embedding to the residual stream before every layer.
              Default False.
            - norm (str): ``'rms'`` (default) or ``'ln'``.
            - bidirectional (bool): Scan forward and backward; False scans forward only. Default
              True.
            - divide_out (bool): Average the two scans instead of summing them. Default True.
            - mixer (dict): Arguments of :class:`mmvssm.models.MambaMixer` to override, such as
              ``d_state`` or ``scan``, or of another registered mixer, named by ``type``. Default
              ``{}``.
        divide_out: Field ``divide_out``; None for that of ``arch``.
        img_size: See :class:`PlainBackbone`, as for all arguments that follow.
        in_channels: Channels of the image.
        cls_token: Field ``cls_token``; None for that of ``arch``.
        drop_cls_token: Leave class tokens out of the sequence; True in the published segmentors.
        rope: Field ``rope``; None for that of ``arch``.
        norm: Field ``norm``; None for that of ``arch``.
        drop_path_rate: Drop-path rate of the last layer.
        out_indices: Layers whose output is returned.
        out_type: ``'cls_token'``, ``'featmap'``, ``'avg_featmap'``, ``'last_token'`` or ``'raw'``.
        out_norm: Whether outputs are normalised, or by which norm; False in the published
            segmentors.
        feature: ``'residual'`` or ``'mixer'``, as in the published segmentors.
        frozen_stages: Layers up to which parameters are frozen; -1 for none.
        norm_eval: No effect, since there are no batch norms.
        odd_size: ``'crop'`` or ``'pad'``.
        with_cp: Recompute layers in the backward pass to save memory.
        init_cfg: Initialisation.
    """

    arch_settings: ClassVar[dict[str, dict]] = {
        "tiny": dict(embed_dims=192, num_layers=24),
        "small": dict(embed_dims=384, num_layers=24),
        "base": dict(embed_dims=768, num_layers=24),
        "tiny-stride8": dict(embed_dims=192, num_layers=24, stride=8),
        "small-stride8": dict(embed_dims=384, num_layers=24, stride=8),
        "base-stride8": dict(embed_dims=768, num_layers=24, stride=8),
    }
    arch_defaults: ClassVar[dict] = dict(
        embed_dims=None,
        num_layers=None,
        patch_size=16,
        stride=None,
        cls_token="middle",
        pos_embed=True,
        rope=False,
        norm="rms",
        bidirectional=True,
        divide_out=True,
        mixer={},
    )
    # PyTorch's rule for linear layers, also inside a model with another default
    default_init_cfg: ClassVar[list[dict]] = [
        dict(
            type="Kaiming",
            layer="Linear",
            a=math.sqrt(5),
            mode="fan_in",
            nonlinearity="leaky_relu",
            distribution="uniform",
        ),
        UNIT_RMS_NORM,
    ]

    def __init__(
        self,
        arch: str | Mapping = "tiny",
        divide_out: bool | None = None,
        img_size: int | Sequence[int] = 224,
        in_channels: int = 3,
        cls_token: str | None = None,
        drop_cls_token: bool = False,
        rope: bool | None = None,
        norm: str | None = None,
        drop_path_rate: float = 0.1,
        out_indices: int | Sequence[int] = -1,
        out_type: str | None = None,
        out_norm: bool | str = True,
        feature: str | Sequence[str] = "residual",
        frozen_stages: int = -1,
        norm_eval: bool = False,
        odd_size: str = "crop",
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        arch = self.read_arch(arch, divide_out=divide_out)
        super().__init__(
            arch,
            img_size=img_size,
            in_channels=in_channels,
            cls_token=cls_token,
            drop_cls_token=drop_cls_token,
            rope=rope,
            norm=norm,
            drop_path_rate=drop_path_rate,
            out_indices=out_indices,
            out_type=out_type,
            out_norm=out_norm,
            feature=feature,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            odd_size=odd_size,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )

    def build_mixer(self, arch: dict, layer: int) -> nn.Module:
        """Build scans of the entire sequence; see :meth:`PlainBackbone.build_mixer`."""
        options = dict(
            scan="bidirectional" if arch["bidirectional"] else "rows",
            merge="mean" if arch["divide_out"] else "sum",
            depth=arch["num_layers"],
        )
        return build_mixer(MambaMixer, arch["embed_dims"], {**options, **arch["mixer"]})

    def init_embeddings(self) -> None:
        """Initialise embeddings, and patches from a truncated normal of ``1 / sqrt(fan-in)``."""
        super().init_embeddings()
        conv = self.patch_embed.conv1
        # 0.8796 is the standard deviation of a standard normal variable truncated at 2
        std = conv.weight[0].numel() ** -0.5 / 0.87962566103423978
        nn.init.trunc_normal_(conv.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(conv.bias)
