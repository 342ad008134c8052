"""Vim and LocalVim: plain backbones of bidirectional and of windowed selective scans.

`Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model
<https://arxiv.org/abs/2401.09417>`_, `LocalMamba: Visual State Space Model with Windowed Selective
Scan <https://arxiv.org/abs/2403.09338>`_
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import nn

from mmvssm.registry import MODELS

from ..layers import MambaMixer
from .hierarchical import INIT_CFG
from .local_directions import LOCAL_VIM_TINY, SEARCH, read_directions
from .plain import PlainBackbone

_UNIT_RMS_NORM = dict(type="Constant", layer="RMSNorm", val=1.0)


@MODELS.register_module()
class Vim(PlainBackbone):
    """Backbone of `Vision Mamba <https://arxiv.org/abs/2401.09417>`_.

    Every layer scans the sequence of patches, with the class token in its middle, from its start
    and from its end. The first release had ``cls_token='head'`` or ``'none'``, ``rope=True`` and
    ``divide_out=False``.

    =================  =====  ======  ======  ===========  =============
    ``arch``           width  layers  stride  parameters   top-1 (paper)
    =================  =====  ======  ======  ===========  =============
    ``tiny``             192      24      16    7 148 008  76.1
    ``small``            384      24      16   25 796 584  80.5
    ``base``             768      24      16   97 598 440  81.9
    ``tiny-stride8``     192      24       8    7 250 344  78.3
    ``small-stride8``    384      24       8   26 001 256  81.6
    =================  =====  ======  ======  ===========  =============

    Parameters are those of classifiers of 1000 classes at 224 x 224 pixels. Patches have 16 pixels.

    Args:
        arch: A name of the table, or a dict of the fields below.

            - embed_dims (int): Channels C. Required.
            - num_layers (int): Required.
            - patch_size (int): Side of a patch. Default 16.
            - stride (int | None): Pixels from patch to patch; None for ``patch_size``, the
              default.
            - cls_token (str): Place of the class token: ``'middle'`` (default), ``'head'``,
              ``'none'``, or ``'double'`` for one at either end.
            - pos_embed (bool): Add a learned position embedding. Default True.
            - rope (bool): Turn the residual stream by a rotary embedding before every layer.
              Default False.
            - norm (str): ``'rms'`` (default) or ``'ln'``.
            - bidirectional (bool): Default True; False scans from the start only.
            - divide_out (bool): Take the mean of the two scans, not the sum. Default True.
            - mixer (dict): Arguments of :class:`mmvssm.models.MambaMixer` that are to differ:
              ``d_state``, ``ssm_ratio``, ``dt_rank``, ``d_conv``, ``force_fp32``,
              ``ssm_init``. Default ``{}``.
        divide_out: Field ``divide_out``; None for that of ``arch``.
        **kwargs: Those of :class:`PlainBackbone`. The published segmentors have
            ``feature='mixer'``, ``out_norm=False`` and ``drop_cls_token=True``.
    """

    arch_settings: ClassVar[dict[str, dict]] = {
        "tiny": dict(embed_dims=192, num_layers=24),
        "small": dict(embed_dims=384, num_layers=24),
        "base": dict(embed_dims=768, num_layers=24),
        "tiny-stride8": dict(embed_dims=192, num_layers=24, stride=8),
        "small-stride8": dict(embed_dims=384, num_layers=24, stride=8),
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
    # linear layers start from PyTorch's rule, also inside a model that says otherwise
    default_init_cfg: ClassVar[list[dict]] = [
        dict(
            type="Kaiming",
            layer="Linear",
            a=math.sqrt(5),
            mode="fan_in",
            nonlinearity="leaky_relu",
            distribution="uniform",
        ),
        _UNIT_RMS_NORM,
    ]

    def __init__(
        self, arch: str | Mapping = "tiny", divide_out: bool | None = None, **kwargs
    ) -> None:
        super().__init__(self.read_arch(arch, divide_out=divide_out), **kwargs)

    def build_mixer(self, arch: dict, layer: int) -> MambaMixer:
        """Scans of the whole sequence; see :meth:`PlainBackbone.build_mixer`."""
        return MambaMixer(
            arch["embed_dims"],
            scan="bidirectional" if arch["bidirectional"] else "forward",
            merge="mean" if arch["divide_out"] else "sum",
            depth=arch["num_layers"],
            **arch["mixer"],
        )

    def init_embeddings(self) -> None:
        """As in :class:`PlainBackbone`; patches by a normal of ``1 / sqrt(fan-in)``, cut at 2."""
        super().init_embeddings()
        conv = self.patch_embed.conv1
        # 0.8796 is the standard deviation of a standard normal variable cut at 2
        std = conv.weight[0].numel() ** -0.5 / 0.87962566103423978
        nn.init.trunc_normal_(conv.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(conv.bias)


@MODELS.register_module()
class LocalVim(PlainBackbone):
    """Plain backbone "LocalVim" of `LocalMamba <https://arxiv.org/abs/2403.09338>`_.

    Each layer scans the map of patches in its own directions: along rows, along columns or window
    by window, forward or backward. A channel attention weighs the scans before they are added up.

    ==================  =====  ======  ===========  =============
    ``arch``            width  layers  parameters   top-1 (paper)
    ==================  =====  ======  ===========  =============
    ``tiny``              192      20    7 994 152  76.2
    ``tiny-mid-cls``      192      20    7 994 536  77.8
    ``small``             384      20   27 783 784  81.1
    ``small-searched``    384      20   27 783 784  -
    ``tiny-search``       128      20    5 473 288  -
    ==================  =====  ======  ===========  =============

    Parameters are those of classifiers of 1000 classes at 224 x 224 pixels. ``tiny``,
    ``tiny-mid-cls`` (a class token instead of the rotary embedding) and ``small-searched`` have
    the directions that the authors searched. ``small`` is what their registry builds under this
    name, without a search; which of the two forms 81.1 belongs to is not known. The training of
    ``tiny-search`` finds directions.

    Args:
        arch: A name of the table, or a dict of the fields below.

            - embed_dims, num_layers, patch_size, stride, pos_embed, norm: As in :class:`Vim`.
            - cls_token (str): ``'none'`` (default), ``'middle'`` or ``'head'``.
            - rope (bool): Turn the residual stream by a rotary embedding before every layer.
              Default True.
            - directions: What the argument ``directions`` replaces. Default None: the four
              directions ``h h_flip w2 w2_flip`` in every layer.
            - output_order (str): ``'inverse'`` (default), or ``'upstream'`` for the published
              code's results, which mix up columns on maps that are not square; see
              :func:`mmvssm.models.layers.direction_tables`.
            - mixer (dict): As in :class:`Vim`; ``dict(ssm_init='v0')`` starts steps as Mamba does,
              while the published networks start them like linear layers.
        directions: Directions of each layer: a list of names such as
            ``['h', 'v_flip', 'w7', 'w7_flip']`` for every layer of the network, see
            :func:`mmvssm.ops.routes.directions`; ``'search'`` for all eight of the search in
            every layer, merged by learned probabilities; None for those of ``arch``.
        output_order: Field ``output_order``; None for that of ``arch``.
        odd_size: As in :class:`PlainBackbone`, with another default.
        **kwargs: Those of :class:`PlainBackbone`. The published detectors and segmentors have
            ``feature='mixer'`` and ``out_norm='ln'``.

    Raises:
        ValueError: If the directions do not fit the depth, differ in number from layer to layer or
            are unknown (the message says which layer), or as in :class:`PlainBackbone`.
    """

    arch_settings: ClassVar[dict[str, dict]] = {
        "tiny": dict(embed_dims=192, num_layers=20, directions=LOCAL_VIM_TINY),
        "tiny-mid-cls": dict(
            embed_dims=192,
            num_layers=20,
            directions=LOCAL_VIM_TINY,
            cls_token="middle",
            rope=False,
        ),
        "small": dict(embed_dims=384, num_layers=20),
        "small-searched": dict(embed_dims=384, num_layers=20, directions=LOCAL_VIM_TINY),
        "tiny-search": dict(embed_dims=128, num_layers=20, directions=SEARCH),
    }
    arch_defaults: ClassVar[dict] = dict(
        embed_dims=None,
        num_layers=None,
        patch_size=16,
        stride=None,
        cls_token="none",
        pos_embed=True,
        rope=True,
        norm="rms",
        directions=None,
        output_order="inverse",
        mixer={},
    )
    class_tokens: ClassVar[tuple[str, ...]] = ("none", "head", "middle")
    default_init_cfg: ClassVar[list[dict]] = [*INIT_CFG, _UNIT_RMS_NORM]

    def __init__(
        self,
        arch: str | Mapping = "tiny",
        directions: str | Sequence[Sequence[str]] | None = None,
        output_order: str | None = None,
        odd_size: str = "pad",
        **kwargs,
    ) -> None:
        arch = self.read_arch(arch, directions=directions, output_order=output_order)
        super().__init__(arch, odd_size=odd_size, **kwargs)

    def build_mixer(self, arch: dict, layer: int) -> MambaMixer:
        """Scans in the layer's directions; see :meth:`PlainBackbone.build_mixer`."""
        depth = arch["num_layers"]
        directions, merge = read_directions(arch["directions"], depth)
        return MambaMixer(
            arch["embed_dims"],
            scan=directions[layer],
            merge=merge,
            output_order=arch["output_order"],
            depth=depth,
            **{"ssm_init": "linear", **arch["mixer"]},
        )

    def init_embeddings(self) -> None:
        """As in :class:`PlainBackbone`; the class token is zero."""
        super().init_embeddings()
        if self.cls_token is not None:
            nn.init.zeros_(self.cls_token)
