"""Feature pyramid from the single map of a plain backbone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmvssm.registry import MODELS

from ..layers.checks import one_of

SCALES = (4, 2, 1, 0.5, 0.25)
EPS = 1e-6


@MODELS.register_module()
class MapNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel of ``(B, C, H, W)``.

    Heads of mmdetection and mmsegmentation take it as ``norm_cfg=dict(type="mmvssm.MapNorm",
    eps=1e-6)``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``, contiguous."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


def level_name(scale: float) -> str:
    """Return the name of the module that computes the map of a scale: ``'x4'``, ``'x0_5'``."""
    return f"x{scale:g}".replace(".", "_")


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Neck that resamples one map to several scales with the same number of channels.

    This is the pyramid of `Exploring Plain Vision Transformer Backbones for Object Detection
    <https://arxiv.org/abs/2203.16527>`_, for detectors with :class:`mmvssm.Vim` and
    :class:`mmvssm.LocalVim`. Transposed 2x2 convolutions enlarge the map (scale ``4`` uses two,
    with a norm and a GELU in between). Max pooling reduces it and drops odd last rows and columns.
    A 1x1 and a 3x3 convolution without bias follow, each with a norm over the channels and without
    activation. Further levels take every second pixel of the level before.

    Args:
        in_channels: Channels C of the map.
        out_channels: Channels of every level.
        scales: Sizes of the first levels relative to the map, in descending order, out of ``4``,
            ``2``, ``1``, ``0.5`` and ``0.25``. For a map of stride 16, the default yields strides
            4, 8, 16 and 32; for stride 8, use ``(2, 1, 0.5, 0.25)``.
        num_outs: Number of levels; those beyond ``scales`` are subsampled.
        init_cfg: Initialisation; None for PyTorch's.

    Raises:
        ValueError: If ``scales`` holds another scale or does not descend, ``num_outs`` is less than
            its length, or ``in_channels`` cannot be halved for every doubling; in the forward
            pass, if the input is not a single map of ``in_channels``, or is too small.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        scales: Sequence[float] = (4, 2, 1, 0.5),
        num_outs: int = 5,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        for scale in scales:
            one_of("scales", scale, SCALES)
        if not scales or list(scales) != sorted(set(scales), reverse=True):
            raise ValueError(f"scales must be in descending order, got {tuple(scales)}")
        if num_outs < len(scales):
            raise ValueError(
                f"num_outs must be at least {len(scales)}, the number of scales, got {num_outs}"
            )
        divisor = max(1, int(max(scales)))
        if not isinstance(in_channels, int) or in_channels % divisor:
            raise ValueError(
                f"in_channels must be a number divisible by {divisor} for these scales,"
                f" got {in_channels}"
            )
        self.in_channels = in_channels
        self.num_outs = num_outs
        self.min_size = max(1, int(1 / min(scales)))
        self.levels = nn.ModuleDict(
            {level_name(scale): _build_level(in_channels, out_channels, scale) for scale in scales}
        )

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the levels.

        Args:
            inputs: The map ``(B, C, H, W)``, alone or as the only element of a sequence.

        Returns:
            ``num_outs`` contiguous maps ``(B, out_channels, H_i, W_i)``.
        """
        if not isinstance(inputs, Tensor):
            if len(inputs) != 1:
                raise ValueError(
                    f"inputs must hold one map, got {len(inputs)}; let the backbone's out_indices"
                    " name a single layer"
                )
            (inputs,) = inputs
        if inputs.dim() != 4 or inputs.shape[1] != self.in_channels:
            raise ValueError(
                f"inputs must be (B, {self.in_channels}, H, W), got {tuple(inputs.shape)}"
            )
        height, width = inputs.shape[2:]
        if min(height, width) < self.min_size:
            raise ValueError(
                f"inputs must have at least {self.min_size}x{self.min_size} pixels for these"
                f" scales, got {height}x{width}"
            )
        outs = [level(inputs) for level in self.levels.values()]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)


def _build_level(in_channels: int, out_channels: int, scale: float) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    if scale < 1:
        layers["pool"] = nn.MaxPool2d(int(1 / scale))
    if scale >= 2:
        layers["deconv1"] = nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
        channels //= 2
    if scale == 4:
        layers["deconv_norm"] = MapNorm(channels, eps=EPS)
        layers["act"] = nn.GELU()
        layers["deconv2"] = nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
        channels //= 2
    layers["conv1"] = nn.Conv2d(channels, out_channels, 1, bias=False)
    layers["norm1"] = MapNorm(out_channels, eps=EPS)
    layers["conv2"] = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
    layers["norm2"] = MapNorm(out_channels, eps=EPS)
    return nn.Sequential(layers)
