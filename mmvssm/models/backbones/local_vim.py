"""LocalVim: a plain backbone whose layers scan in directions found by a search.

`LocalMamba: Visual State Space Model with Windowed Selective Scan
<https://arxiv.org/abs/2403.09338>`_
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import nn

from mmvssm.registry import MODELS

from ..layers import MambaMixer, build_mixer
from .hierarchical import INIT_CFG
from .local_directions import LOCAL_VIM_TINY, SEARCH, read_directions
from .plain import UNIT_RMS_NORM, PlainBackbone


@MODELS.register_module()
class LocalVim(PlainBackbone):
    """Plain backbone "LocalVim" of `LocalMamba <https://arxiv.org/abs/2403.09338>`_.

    Each layer scans the map of patches in its own directions: along rows, along columns or window
    by window, forward or backward. Channel attention weights the scans before they are summed.

    ===================  =====  ======  ===========  =============
    ``arch``             width  layers  parameters   published top-1
    ===================  =====  ======  ===========  =============
    ``tiny``               192      20    7 994 152  76.2
    ``tiny-unsearched``    192      20    7 994 152  75.8
    ``tiny-mid-cls``       192      20    7 994 536  77.8
    ``small``              384      20   27 783 784  81.0
    ``small-searched``     384      20   27 783 784  81.2
    ``tiny-search``        128      20    5 473 288  -
    ===================  =====  ======  ===========  =============

    Parameters are those of classifiers of 1000 classes at 224 x 224 pixels. ``tiny``,
    ``tiny-mid-cls`` (a class token instead of the rotary embedding) and ``small-searched`` have
    the directions found by the authors' search. ``tiny-unsearched`` and ``small`` have the same
    four directions in every layer, as the authors' code builds ``small``. Training ``tiny-search``
    searches for directions.

    Args:
        arch: A name of the table, or a dict of the fields below.

            - embed_dims, num_layers, patch_size, stride, pos_embed, norm: As in :class:`Vim`.
            - cls_token (str): ``'none'`` (default), ``'middle'`` or ``'head'``.
            - rope (bool): Apply a rotary embedding to the residual stream before every layer.
              Default True.
            - directions: Default of the argument ``directions``; None (default) for the four
              directions ``h h_flip w2 w2_flip`` in every layer.
            - output_order (str): ``'inverse'`` (default), or ``'upstream'`` to reproduce the
              published code, which shuffles the pixels of columns on maps that are not square;
              see :func:`mmvssm.ops.routes.directions`.
            - mixer (dict): As in :class:`Vim`. ``dict(ssm_init='v0')`` initialises step sizes as
              Mamba does; the published networks initialise them like linear layers.
        directions: Directions of each layer: a list of names such as
            ``['h', 'v_flip', 'w7', 'w7_flip']`` for every layer of the network, see
            :func:`mmvssm.ops.routes.directions`; ``'search'`` for all eight directions of the
            search in every layer, merged by learned probabilities; None for those of ``arch``.
        output_order: Field ``output_order``; None for that of ``arch``.
        img_size: See :class:`PlainBackbone`, as for all arguments that follow.
        in_channels: Channels of the image.
        cls_token: Field ``cls_token``; None for that of ``arch``.
        drop_cls_token: Leave class tokens out of the sequence.
        rope: Field ``rope``; None for that of ``arch``.
        norm: Field ``norm``; None for that of ``arch``.
        drop_path_rate: Drop-path rate of the last layer.
        out_indices: Layers whose output is returned.
        out_type: ``'cls_token'``, ``'featmap'``, ``'avg_featmap'``, ``'last_token'`` or ``'raw'``.
        out_norm: Whether outputs are normalised, or by which norm; ``'ln'`` in the published
            detectors and segmentors.
        feature: ``'residual'`` or ``'mixer'``, as in the published detectors and
            segmentors.
        frozen_stages: Layers up to which parameters are frozen; -1 for none.
        norm_eval: No effect, since there are no batch norms.
        odd_size: ``'crop'`` or ``'pad'``.
        with_cp: Recompute layers in the backward pass to save memory.
        init_cfg: Initialisation.

    Raises:
        ValueError: If the directions do not fit the depth, differ in number from layer to layer or
            are unknown (the message says which layer), or as in :class:`PlainBackbone`.
    """

    arch_settings: ClassVar[dict[str, dict]] = {
        "tiny": dict(embed_dims=192, num_layers=20, directions=LOCAL_VIM_TINY),
        "tiny-unsearched": dict(embed_dims=192, num_layers=20),
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
    mixer_fixed: ClassVar[tuple[str, ...]] = (
        *("scan", "merge", "output_order"),
        *PlainBackbone.mixer_fixed,
    )
    default_init_cfg: ClassVar[list[dict]] = [*INIT_CFG, UNIT_RMS_NORM]

    def __init__(
        self,
        arch: str | Mapping = "tiny",
        directions: str | Sequence[Sequence[str]] | None = None,
        output_order: str | None = None,
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
        odd_size: str = "pad",
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        arch = self.read_arch(arch, directions=directions, output_order=output_order)
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
        """Build scans in the layer's directions; see :meth:`PlainBackbone.build_mixer`."""
        depth = arch["num_layers"]
        directions, merge = read_directions(arch["directions"], depth)
        options = dict(
            ssm_init="linear",
            scan=directions[layer],
            merge=merge,
            output_order=arch["output_order"],
            depth=depth,
        )
        return build_mixer(MambaMixer, arch["embed_dims"], {**options, **arch["mixer"]})

    def init_embeddings(self) -> None:
        """Initialise embeddings as :class:`PlainBackbone` does, but class tokens to zero."""
        super().init_embeddings()
        if self.cls_token is not None:
            nn.init.zeros_(self.cls_token)
