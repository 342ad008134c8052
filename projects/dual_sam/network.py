"""Dual-SAM: an image and its gamma-corrected copy, one encoder, two decoders.

Both images go through the same encoder in one batch. :class:`DualViTSAM` is SAM's encoder, frozen,
with a separate adapter for each image in every layer, shared low-rank updates, and prompts that
couple the two images; :class:`DualPyramid` wraps any backbone of four maps. Each decoder takes the
neck's map and four skip maps, and predicts at four scales which neighbours of a pixel belong to the
same animal.

Where the published code differs from the paper's figures, an argument chooses between them; it
defaults to the code's form. Shapes: maps ``(B, C, H, W)``, tokens ``(B, h, w, D)``; lists of maps
start with the finest.

Paper: Fantastic Animals and Where to Find Them: Segment Any Marine Animal with Dual SAM
(arXiv 2404.04996).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule, ModuleList
from mmpretrain.models.backbones.vit_sam import Attention, ViTSAM
from mmpretrain.models.utils import LayerNorm2d
from mmseg.registry import MODELS
from torch import Tensor, nn

from .connectivity import OFFSETS
from .weights import load_encoder

NUM_LEVELS = 4
SELF_HEADS, CROSS_HEADS = 12, 8


class Branch(NamedTuple):
    """Inputs of a decoder from one image: the neck's map and the skip maps of four levels."""

    neck: Tensor
    skips: Sequence[Tensor]


def conv_bn_gelu(
    in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1
) -> nn.Sequential:
    """Return a convolution that keeps the size, batch norm and GELU."""
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False
    )
    layers = OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels), gelu=nn.GELU())
    return nn.Sequential(layers)


def init_bottleneck(*layers: nn.Module) -> None:
    """Initialize the layers of an adapter or a squeeze: Xavier weights, biases near zero."""
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.normal_(layer.bias, std=1e-6)


class LoRALinear(nn.Linear):
    """The projection to queries, keys and values, with low-rank updates of queries and values.

    Args:
        embed_dims: Width D; the output has 3D channels.
        rank: Rank of the updates, which start at zero.
    """

    def __init__(self, embed_dims: int, rank: int) -> None:
        super().__init__(embed_dims, 3 * embed_dims)
        self.lora_query = self._update(embed_dims, rank)
        self.lora_value = self._update(embed_dims, rank)

    @staticmethod
    def _update(embed_dims: int, rank: int) -> nn.Sequential:
        down, up = nn.Linear(embed_dims, rank, bias=False), nn.Linear(rank, embed_dims, bias=False)
        nn.init.zeros_(up.weight)
        return nn.Sequential(down, up)

    def forward(self, x: Tensor) -> Tensor:
        """Project: ``(..., D) -> (..., 3D)``."""
        query, key, value = super().forward(x).chunk(3, dim=-1)
        return torch.cat([query + self.lora_query(x), key, value + self.lora_value(x)], dim=-1)


class Adapter(nn.Module):
    """Bottleneck with a residual: ``x + up(q(down(norm(x))))``, where q is x times sigmoid(1.702x).

    Args:
        embed_dims: Width.
        reduction: Width over the width of the bottleneck.
    """

    def __init__(self, embed_dims: int, reduction: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dims)
        self.down = nn.Linear(embed_dims, embed_dims // reduction)
        self.up = nn.Linear(embed_dims // reduction, embed_dims)
        init_bottleneck(self.down, self.up)

    def forward(self, x: Tensor) -> Tensor:
        """Adapt tokens ``(B, h, w, D)``."""
        hidden = self.down(self.norm(x))
        return x + self.up(hidden * torch.sigmoid(1.702 * hidden))


class AdaptedFFN(FFN):
    """Feed-forward network followed by an adapter, a separate one for each image.

    Args:
        embed_dims: Width.
        feedforward_channels: Hidden width.
        reduction: See :class:`Adapter`.
    """

    def __init__(self, embed_dims: int, feedforward_channels: int, reduction: int) -> None:
        super().__init__(embed_dims, feedforward_channels, act_cfg=dict(type="GELU"))
        self.adapters = ModuleList(Adapter(embed_dims, reduction) for _ in range(2))

    def forward(self, x: Tensor, identity: Tensor) -> Tensor:
        """Apply to ``(2B, h, w, D)``, the B images before their copies, and add ``identity``."""
        halves = zip(self.adapters, self.layers(x).chunk(2))
        return identity + torch.cat([adapter(half) for adapter, half in halves])


class CrossAttention(nn.Module):
    """Attention whose queries, keys and values come from three inputs; no biases but the last.

    Args:
        embed_dims: Width.
        num_heads: Heads.
    """

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(embed_dims, embed_dims, bias=False)
        self.key = nn.Linear(embed_dims, embed_dims, bias=False)
        self.value = nn.Linear(embed_dims, embed_dims, bias=False)
        self.output = nn.Linear(embed_dims, embed_dims)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from ``query`` to ``key`` and ``value``, all ``(B, n, D)``, as is the result."""
        projected = (self.query(query), self.key(key), self.value(value))
        heads = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected)
        return self.output(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class CoupledPrompt(nn.Module):
    """A block of the prompt branch: prompts attend to themselves, then couple the two images.

    Args:
        embed_dims: Width D.
        scrambled_values: Whether the coupling reads the channels-last prompts as if they were
            channels first, as the published code does; this mixes tokens and channels.
    """

    def __init__(self, embed_dims: int, scrambled_values: bool) -> None:
        super().__init__()
        self.scrambled_values = scrambled_values
        self.norm1, self.norm2 = nn.LayerNorm(embed_dims), nn.LayerNorm(embed_dims)
        self.self_attn = Attention(embed_dims, SELF_HEADS)
        self.cross_attn = CrossAttention(embed_dims, CROSS_HEADS)
        ffn = dict(feedforward_channels=4 * embed_dims, act_cfg=dict(type="GELU"))
        self.self_ffn, self.cross_ffn = FFN(embed_dims, **ffn), FFN(embed_dims, **ffn)
        self.to_image = conv_bn_gelu(embed_dims, embed_dims, 1)
        self.to_gamma = conv_bn_gelu(embed_dims, embed_dims, 1)

    def forward(self, prompt: Tensor, image: Tensor, gamma: Tensor) -> tuple[Tensor, ...]:
        """Couple the tokens of both images: all inputs and outputs are ``(B, h, w, D)``.

        Returns:
            The prompt for the next block, and the terms to add to the tokens of image and copy.
        """
        prompt = prompt + self.self_attn(self.norm1(prompt))
        prompt = self.self_ffn(self.norm2(prompt), identity=prompt)

        value = self.norm1(prompt)
        if self.scrambled_values:
            value = value.flatten(1).unflatten(1, (value.shape[-1], -1)).transpose(1, 2)
        else:
            value = value.flatten(1, 2)
        query, key = self.norm1(image).flatten(1, 2), self.norm1(gamma).flatten(1, 2)
        coupled = prompt + self.cross_attn(query, key, value).view_as(prompt)
        coupled = self.cross_ffn(self.norm2(coupled), identity=coupled).permute(0, 3, 1, 2)
        outputs = (self.to_image(coupled), self.to_gamma(coupled))
        return prompt, *(output.permute(0, 2, 3, 1) for output in outputs)


class CoupledPrompts(nn.Module):
    """Prompts made of both images, which are added to the encoder's tokens at four depths.

    Args:
        embed_dims: Width D.
        grid: Rows and columns of patches.
        patch_size: Side of a patch.
        in_channels: Channels of an image.
        scrambled_values: See :class:`CoupledPrompt`.
        gate_init: Initial value of the gates, which multiply the prompts.
        train_gates: Whether the gates are trained.
    """

    def __init__(
        self,
        embed_dims: int,
        grid: Sequence[int],
        patch_size: int,
        in_channels: int,
        scrambled_values: bool,
        gate_init: float,
        train_gates: bool,
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(in_channels, embed_dims, patch_size, patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, *grid, embed_dims))
        self.blocks = ModuleList(
            CoupledPrompt(embed_dims, scrambled_values) for _ in range(NUM_LEVELS)
        )
        gates = torch.full((2, NUM_LEVELS), float(gate_init))
        self.image_gates = nn.Parameter(gates[0].clone(), train_gates)
        self.gamma_gates = nn.Parameter(gates[1].clone(), train_gates)

    def forward(
        self, images: Tensor, image: Sequence[Tensor], gamma: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Add prompts to two lists of four maps ``(B, D, h, w)``; return lists of the same shapes.

        Args:
            images: The sum of both images ``(B, 3, H, W)``.
            image: Maps of the image at four depths.
            gamma: Maps of its gamma-corrected copy.
        """
        prompt = self.patch_embed(images).permute(0, 2, 3, 1) + self.pos_embed
        prompted: tuple[list[Tensor], list[Tensor]] = ([], [])
        for i, block in enumerate(self.blocks):
            prompt, *added = block(
                prompt, image[i].permute(0, 2, 3, 1), gamma[i].permute(0, 2, 3, 1)
            )
            gates = (self.image_gates[i], self.gamma_gates[i])
            for out, x, gate, extra in zip(prompted, (image[i], gamma[i]), gates, added):
                out.append(x + gate * extra.permute(0, 3, 1, 2))
        return prompted


@MODELS.register_module()
class DualViTSAM(ViTSAM):
    """SAM's image encoder for two images: frozen, with adapters, low-rank updates and prompts.

    Args:
        arch: As mmpretrain's ``ViTSAM``; four layers have global attention, and the maps after
            them become the skips. The width must be a multiple of 48.
        img_size: Side of the images in pixels, which sets the size of the position embeddings.
        neck_channels: Channels of the neck's map.
        lora_rank: Rank of the updates of queries and values, shared by the two images.
        adapter_reduction: Width over the width of an adapter's bottleneck.
        scrambled_values: See :class:`CoupledPrompt`; the paper's figure has False.
        gate_init: Initial value of the prompts' gates. With 0 the prompt blocks get no gradient
            until the gates have moved away from 0.
        train_gates: Whether the gates are trained, as in the paper. In the published code they are
            constants of unknown value.
        pretrained: Checkpoint of SAM's image encoder that training starts from, in the names of
            SAM, mmpretrain or the published code. With None the weights of the frozen encoder must
            come from a checkpoint of the complete model.
        init_cfg: See ``ViTSAM``.

    Raises:
        ValueError: If ``arch`` is unknown, does not have four global layers, or has a width that is
            not divisible by the number of heads, as in SAM's large and huge encoders; in the
            forward pass, if images have a size other than ``img_size``.
    """

    #: How often the decoder doubles the size of each skip, finest level first.
    num_upsamples = (3, 2, 1, 0)

    def __init__(
        self,
        arch: str | dict = "base",
        img_size: int = 512,
        neck_channels: int = 256,
        lora_rank: int = 4,
        adapter_reduction: int = 16,
        scrambled_values: bool = True,
        gate_init: float = 0.0,
        train_gates: bool = False,
        pretrained: str | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        if isinstance(arch, str) and arch not in self.arch_zoo:
            raise ValueError(f"arch must be one of {', '.join(self.arch_zoo)}, got {arch!r}")
        settings = self.arch_zoo[arch] if isinstance(arch, str) else arch
        depths, width = settings["global_attn_indexes"], settings["embed_dims"]
        if len(depths) != NUM_LEVELS:
            raise ValueError(f"arch must have {NUM_LEVELS} global_attn_indexes, got {depths}")
        for name, divisor in (("heads", 24), ("adapter_reduction", adapter_reduction)):
            if width % divisor:
                raise ValueError(
                    f"embed_dims must be a multiple of {divisor} ({name}), got {width}"
                )
        super().__init__(
            arch,
            img_size,
            out_channels=neck_channels,
            out_indices=list(depths),
            interpolate_mode="bilinear",
            init_cfg=init_cfg,
        )
        self.pretrained = pretrained
        # from here on the layers return their tokens: the neck is applied to the last ones only
        self.out_channels = 0
        self.neck_channels, self.skip_channels = neck_channels, (width,) * NUM_LEVELS
        for layer in self.layers:
            layer.attn.qkv = LoRALinear(width, lora_rank)
            layer.ffn = AdaptedFFN(width, settings["feedforward_channels"], adapter_reduction)
        for name, parameter in self.named_parameters():
            parameter.requires_grad = ".lora_" in name or ".adapters." in name
        patch = self.patch_embed.projection
        self.prompts = CoupledPrompts(
            width,
            self.patch_resolution,
            patch.kernel_size[0],
            patch.in_channels,
            scrambled_values,
            gate_init,
            train_gates,
        )

    def init_weights(self) -> None:
        """Initialize all weights, then load SAM's from ``pretrained``."""
        super().init_weights()
        if self.pretrained is not None:
            load_encoder(self, self.pretrained)

    def forward(self, image: Tensor, gamma: Tensor) -> tuple[Branch, Branch]:
        """Encode an image and its gamma-corrected copy, both ``(B, 3, H, W)``."""
        if image.shape[-2:] != torch.Size(self.img_size):
            height, width = image.shape[-2:]
            expected = "x".join(map(str, self.img_size))
            raise ValueError(
                f"images must have img_size, {expected} pixels, as the position embeddings do, got"
                f" {height}x{width}: resize them in the data pipeline"
            )
        maps = super().forward(torch.cat([image, gamma]))
        necks = self.channel_reduction(maps[-1]).chunk(2)
        image_maps, gamma_maps = zip(*(x.chunk(2) for x in maps))
        skips = self.prompts(image + gamma, image_maps, gamma_maps)
        return Branch(necks[0], skips[0]), Branch(necks[1], skips[1])


@MODELS.register_module()
class DualPyramid(BaseModule):
    """Trainable backbone with four maps of strides 4 to 32, applied to two images.

    Args:
        backbone: Config of the backbone, such as ``dict(type="mmvssm.VMamba")``.
        in_channels: Channels of its four maps.
        neck_channels: Channels of the neck's map, which has stride 16.
        init_cfg: Initialisation.

    Raises:
        ValueError: In the forward pass, if the sides of the images are not multiples of 32.
    """

    num_upsamples = (1, 1, 1, 1)

    def __init__(
        self,
        backbone: dict,
        in_channels: Sequence[int],
        neck_channels: int = 256,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.backbone = MODELS.build(backbone)
        self.neck_channels, self.skip_channels = neck_channels, tuple(in_channels)
        self.neck = nn.Sequential(  # as SAM's
            nn.Conv2d(in_channels[-1], neck_channels, 1, bias=False),
            LayerNorm2d(neck_channels, eps=1e-6),
            nn.Conv2d(neck_channels, neck_channels, 3, padding=1, bias=False),
            LayerNorm2d(neck_channels, eps=1e-6),
        )

    def forward(self, image: Tensor, gamma: Tensor) -> tuple[Branch, Branch]:
        """Encode an image and its gamma-corrected copy, both ``(B, 3, H, W)``."""
        height, width = image.shape[-2:]
        if height % 32 or width % 32:
            raise ValueError(
                f"sides of images must be multiples of 32, got {height}x{width}: resize them in"
                " the data pipeline"
            )
        maps = self.backbone(torch.cat([image, gamma]))
        neck = F.interpolate(self.neck(maps[-1]), scale_factor=2, mode="bilinear")
        necks, (image_maps, gamma_maps) = neck.chunk(2), zip(*(x.chunk(2) for x in maps))
        return Branch(necks[0], image_maps), Branch(necks[1], gamma_maps)


class Upsample(nn.Sequential):
    """Transposed convolution that multiplies the size by its stride, then a 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2) -> None:
        super().__init__(
            OrderedDict(
                up=nn.ConvTranspose2d(in_channels, out_channels, stride, stride),
                fuse=conv_bn_gelu(out_channels, out_channels, 3),
            )
        )


class DilatedFusion(nn.Module):
    """The paper's dilated fusion attention: reduce, weight the channels, dilated convolution.

    Args:
        in_channels: Channels of the concatenated maps.
        out_channels: Channels of the result.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduce = conv_bn_gelu(in_channels, out_channels, 1)
        self.squeeze = nn.Sequential(
            nn.Conv2d(out_channels, out_channels // 16, 1),
            nn.ReLU(),
            nn.Conv2d(out_channels // 16, out_channels, 1),
        )
        init_bottleneck(self.squeeze[0], self.squeeze[2])
        self.dilate = conv_bn_gelu(out_channels, out_channels, 3, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        """Fuse: ``(B, in_channels, H, W) -> (B, out_channels, H, W)``."""
        x = self.reduce(x)
        pooled = (F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1))
        weights = torch.sigmoid(sum(map(self.squeeze, pooled)))
        return self.dilate(x * weights + x)


class Decoder(BaseModule):
    """Decoder from the neck's map to full size, with a skip and a prediction at each of 4 levels.

    Args:
        widths: Channels of the levels, finest first.
        neck_channels: Channels of the neck's map.
        skip_channels: Channels of the skips.
        num_upsamples: How often the size of each skip is doubled.
    """

    def __init__(
        self,
        widths: Sequence[int],
        neck_channels: int,
        skip_channels: Sequence[int],
        num_upsamples: Sequence[int],
    ) -> None:
        super().__init__()
        self.skips = ModuleList()
        for level, (channels, count) in enumerate(zip(skip_channels, num_upsamples)):
            steps = (channels, *reversed(widths[level : level + max(count, 1)]))
            stride = 2 if count else 1
            self.skips.append(nn.Sequential(*(Upsample(*x, stride) for x in pairwise(steps))))
        self.ups = ModuleList(Upsample(width, width) for width in widths[1:])
        inner = (*widths[1:], neck_channels)
        self.fusions = ModuleList(DilatedFusion(x + y, x) for x, y in zip(widths, inner))
        self.heads = ModuleList(self._head(width, widths[0]) for width in widths)
        del self.heads[0].fuse  # the finest level is predicted without it

    @staticmethod
    def _head(in_channels: int, width: int) -> nn.Sequential:
        layers = OrderedDict(
            up=nn.ConvTranspose2d(in_channels, width, 2, 2),
            fuse=conv_bn_gelu(width, width, 3),
            predict=nn.Conv2d(width, len(OFFSETS), 1),
        )
        return nn.Sequential(layers)

    def forward(self, neck: Tensor, skips: Sequence[Tensor]) -> list[Tensor]:
        """Return logits ``(B, 8, H / 2^j, W / 2^j)`` of four scales j."""
        x, logits = neck, []
        for level in reversed(range(NUM_LEVELS)):
            if level < len(self.ups):
                x = self.ups[level](x)
            x = self.fusions[level](torch.cat([x, self.skips[level](skips[level])], dim=1))
            logits.append(self.heads[level](x))
        return logits[::-1]
