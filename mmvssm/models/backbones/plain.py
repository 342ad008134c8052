"""What the plain backbones share: patches, class tokens, positions, layers of one width."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule, ModuleList
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from ..layers import CheckpointedBlock, PatchEmbed, build_norm
from ..layers.checks import at_least, complete_arch, known_fields, one_of
from ..layers.tokens import (
    CLASS_TOKENS,
    RotaryTables,
    cls_positions,
    insert_tokens,
    remove_tokens,
    resize_table,
    rotate,
)

NORMS = ("rms", "ln")
#: Arguments of the mixer that a variant may give.
MIXER_FIELDS = ("d_state", "ssm_ratio", "dt_rank", "d_conv", "force_fp32", "ssm_init")
FEATURES = ("residual", "mixer")
OUT_TYPES = ("cls_token", "featmap", "avg_featmap", "last_token", "raw")


def norm_stream(norm: nn.Module, x: Tensor) -> Tensor:
    """Norm a residual stream, which may be more precise than the model that reads it."""
    if isinstance(norm, nn.LayerNorm):
        x = x.to(norm.weight.dtype)
    return norm(x)


def _side(num_patches: int) -> int:
    """Side of the square grid of so many patches; 0 if there is none."""
    side = math.isqrt(max(num_patches, 0))
    return side if side**2 == num_patches else 0


class PlainLayer(CheckpointedBlock):
    """Norm and mixer, whose output is added to the residual stream.

    Args:
        embed_dims: Channels C.
        mixer: Maps ``(B, L, C)`` and what :meth:`forward` hands on to ``(B, L, C)``.
        norm: ``'rms'`` or ``'ln'``.
        drop_path: Drop-path rate of the mixer's output.
        with_cp: Recompute the layer in the backward pass to save memory.
    """

    def __init__(
        self,
        embed_dims: int,
        mixer: nn.Module,
        norm: str = "rms",
        drop_path: float = 0.0,
        with_cp: bool = False,
    ) -> None:
        super().__init__(with_cp)
        self.norm = build_norm(norm, embed_dims)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path)

    def _forward(
        self,
        x: Tensor,
        size: tuple[int, int],
        cls_position: int | None,
        rope: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """The stream behind the layer, and the mixer's output: each ``(B, L, C)`` like ``x``."""
        if rope is not None:
            x = rotate(x, *rope)
        h = self.mixer(norm_stream(self.norm, x), size, cls_position)
        return x + self.drop_path(h), h


class PlainBackbone(BaseModule):
    """Layers of one width on a sequence of patches, with class tokens among them.

    A family gives its variants as data and builds its mixers in :meth:`build_mixer`. The residual
    stream is float32 at least, whatever the precision of the model.

    Attributes:
        arch_settings: Fields by name of the variant.
        arch_defaults: Default of every field; ``embed_dims``, ``num_layers``, ``patch_size``,
            ``stride``, ``norm``, ``pos_embed``, ``rope``, ``cls_token`` and ``mixer`` are
            understood here.
        class_tokens: Places of class tokens that the family can have.
        default_init_cfg: What ``init_cfg=None`` stands for.

    Args:
        arch: A name of ``arch_settings``, or a dict of fields.
        img_size: Image size ``S`` or ``(H, W)`` that position tables are made for, usually that of
            pretraining; for other images they are resized bicubically. So are tables of a
            checkpoint whose square grid is another.
        in_channels: Channels of the image.
        cls_token: Field ``cls_token``; None for that of ``arch``.
        drop_cls_token: Leave class tokens out of the sequence, as the published detectors and
            segmentors do. The position embedding keeps their rows, so that it fits the weights of
            a classifier; in a checkpoint they may be absent.
        rope: Field ``rope``; None for that of ``arch``.
        norm: Field ``norm``; None for that of ``arch``.
        drop_path_rate: Drop-path rate of the last layer; it grows linearly from 0.
        out_indices: Layers, counted from 0 or with negative numbers from the end, whose output is
            returned.
        out_type: ``'cls_token'`` (class token, the mean of two, ``(B, C)``), ``'featmap'``
            (patch tokens as ``(B, C, H, W)``), ``'avg_featmap'`` (their mean, ``(B, C)``),
            ``'last_token'`` (the last of the sequence, ``(B, C)``) or ``'raw'`` (the sequence
            with its class tokens, ``(B, L, C)``); None for ``'cls_token'`` if there is one, else
            ``'avg_featmap'``.
        out_norm: Whether every returned output passes its own norm ``norm{k}``, ``k`` being the
            place in ``out_indices``: True for a norm of the layers' kind, or the kind
            ``'rms'`` or ``'ln'``.
        feature: What of a layer is returned: ``'residual'`` (the stream as the next layer
            reads it) or ``'mixer'`` (what the layer adds to it), for all or for each index.
        frozen_stages: Layers, counted from 0, up to which parameters are frozen and modules kept
            in eval mode, together with patch, class and position embeddings; -1 for none.
        norm_eval: Without effect, since there are no batch norms: one of the arguments that all
            backbones have.
        odd_size: What to do with pixels that do not fill a patch: ``'crop'`` them, or
            ``'pad'`` zeros to the right and bottom.
        with_cp: Recompute layers in the backward pass to save memory.
        init_cfg: Initialisation; None for the family's own. Scan parameters and ``out_proj``
            always start from their own rule, unless a checkpoint is loaded.

    Raises:
        ValueError: If ``arch`` or another argument is not one of its choices; in the forward
            pass, if the image has other channels or is smaller than a patch.
    """

    arch_settings: ClassVar[dict[str, dict]]
    arch_defaults: ClassVar[dict]
    class_tokens: ClassVar[tuple[str, ...]] = tuple(CLASS_TOKENS)
    default_init_cfg: ClassVar[list[dict]]

    def __init__(
        self,
        arch: str | Mapping,
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
        super().__init__(self.default_init_cfg if init_cfg is None else init_cfg)
        arch = self.read_arch(arch, cls_token=cls_token, rope=rope, norm=norm)
        at_least(1, **{name: arch[name] for name in ("embed_dims", "num_layers", "patch_size")})
        if arch["stride"] is not None:
            at_least(1, stride=arch["stride"])
        self.in_channels = in_channels
        self.embed_dims = arch["embed_dims"]
        self.num_layers = arch["num_layers"]
        self.patch_size = arch["patch_size"]
        #: Place of the class token in the position embedding, and in the sequence.
        self.cls_place = one_of("cls_token", arch["cls_token"], self.class_tokens)
        self.used_cls_place = "none" if drop_cls_token else self.cls_place
        self.odd_size = one_of("odd_size", odd_size, ("crop", "pad"))
        self.out_indices = self._read_indices(out_indices)
        features = [feature] * len(self.out_indices) if isinstance(feature, str) else feature
        if len(features) != len(self.out_indices):
            raise ValueError(
                f"feature must be one word or {len(self.out_indices)}, as out_indices has,"
                f" got {feature}"
            )
        self.features = tuple(one_of("feature", word, FEATURES) for word in features)
        if out_type is None:
            out_type = "avg_featmap" if self.used_cls_place == "none" else "cls_token"
        self.out_type = one_of("out_type", out_type, OUT_TYPES)
        if out_type == "cls_token" and self.used_cls_place == "none":
            raise ValueError(
                "out_type 'cls_token' needs a class token, got"
                f" cls_token={self.cls_place!r} and drop_cls_token={drop_cls_token}"
            )
        if frozen_stages not in range(-1, self.num_layers):
            raise ValueError(
                f"frozen_stages must be from -1 to {self.num_layers - 1}, got {frozen_stages}"
            )
        self.frozen_stages = frozen_stages

        norm = one_of("norm", arch["norm"], NORMS)
        self.patch_embed = PatchEmbed(
            in_channels, self.embed_dims, self.patch_size, norm=None, stride=arch["stride"]
        )
        img_size = to_2tuple(img_size)
        if min(img_size) < self.patch_size:
            raise ValueError(
                f"img_size must be at least {self.patch_size}, the side of a patch, got {img_size}"
            )
        self.grid = tuple(self.patch_embed.output_size(side) for side in img_size)
        self.cls_token = self.pos_embed = self.rope = None
        if self.used_cls_place != "none":
            num_class = CLASS_TOKENS[self.used_cls_place]
            self.cls_token = nn.Parameter(torch.empty(num_class, 1, self.embed_dims))
        if arch["pos_embed"]:
            rows = self.grid[0] * self.grid[1] + CLASS_TOKENS[self.cls_place]
            self.pos_embed = nn.Parameter(torch.empty(1, rows, self.embed_dims))
        if arch["rope"]:
            self.rope = RotaryTables(self.embed_dims, self.grid)

        rates = torch.linspace(0, drop_path_rate, self.num_layers, device="cpu").tolist()
        self.layers = ModuleList(
            PlainLayer(self.embed_dims, self.build_mixer(arch, i), norm, rate, with_cp)
            for i, rate in enumerate(rates)
        )
        kind = norm if out_norm is True else out_norm
        for k in range(len(self.out_indices)):
            out = nn.Identity()
            if kind is not False:
                out = build_norm(one_of("out_norm", kind, NORMS), self.embed_dims)
            self.add_module(f"norm{k}", out)
        # a class token of zeros would close its own gate in every layer
        self.init_embeddings()
        self._freeze_stages()

    @classmethod
    def read_arch(cls, arch: str | Mapping, **fields) -> dict:
        """The fields of ``arch``, replaced by those given that are not None, and completed."""
        arch = complete_arch(
            arch, cls.arch_settings, cls.arch_defaults, required=("embed_dims", "num_layers")
        )
        known_fields("mixer", arch["mixer"], MIXER_FIELDS)
        return {**arch, **{name: value for name, value in fields.items() if value is not None}}

    @abstractmethod
    def build_mixer(self, arch: dict, layer: int) -> nn.Module:
        """The mixer of a layer: ``(B, L, C)``, grid, class position -> ``(B, L, C)``."""

    def _read_indices(self, out_indices: int | Sequence[int]) -> tuple[int, ...]:
        given = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
        layers = range(-self.num_layers, self.num_layers)
        if not given or any(i not in layers for i in given):
            raise ValueError(
                f"out_indices must hold layers {layers[0]} to {layers[-1]}, got {out_indices}"
            )
        return tuple(i % self.num_layers for i in given)

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """How deep in the network a parameter is, for learning rates that decay with the layers.

        Args:
            param_name: Its name in the model.
            prefix: What names of this backbone's parameters begin with there.

        Returns:
            0 for patch, class and position embeddings, ``l + 1`` for layer ``l``, and the last
            depth for all else; and the number of depths, ``num_layers + 2``.
        """
        num_depths = self.num_layers + 2
        first, _, rest = param_name.removeprefix(prefix).partition(".")
        if not param_name.startswith(prefix):
            return num_depths - 1, num_depths
        if first in ("patch_embed", "pos_embed", "cls_token"):
            return 0, num_depths
        if first == "layers":
            return int(rest.split(".")[0]) + 1, num_depths
        return num_depths - 1, num_depths

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says; what it does not name, by :meth:`init_embeddings`."""
        self.init_embeddings()
        super().init_weights()

    def init_embeddings(self) -> None:
        """Give position and class embeddings a normal distribution of std 0.02."""
        for embedding in (self.pos_embed, self.cls_token):
            if embedding is not None:
                nn.init.trunc_normal_(embedding, std=0.02, a=-0.1, b=0.1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the layers of ``out_indices``, in their order.

        Args:
            x: Images ``(B, in_channels, H, W)``.

        Returns:
            What ``out_type`` says, per index.
        """
        self._check_input(x)
        x, size = self.embed(x)
        positions = cls_positions(self.used_cls_place, size[0] * size[1])
        rope = None if self.rope is None else self.rope(size, positions)
        # families whose mixers read it have one class token
        cls_position = positions[0] if positions else None
        kept = {}
        for i in range(max(self.out_indices) + 1):
            x, h = self.layers[i](x, size, cls_position, rope)
            if i in self.out_indices:
                kept[i] = x, h
        outs = []
        for k, i in enumerate(self.out_indices):
            out, h = kept[i]
            if self.features[k] == "mixer":
                out = h
            elif rope is not None and i < self.num_layers - 1:
                out = rotate(out, *rope)
            out = norm_stream(getattr(self, f"norm{k}"), out)
            outs.append(self._format(out.to(self.patch_embed.conv1.weight.dtype), size, positions))
        return tuple(outs)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """What the first layer reads: tokens ``(B, L, C)``, and the grid of the patches."""
        if self.odd_size == "pad":
            height, width = (self._padding(side) for side in x.shape[2:])
            x = F.pad(x, (0, width, 0, height))
        x = self.patch_embed(x)
        size, x = tuple(x.shape[1:3]), x.flatten(1, 2)
        positions = cls_positions(self.used_cls_place, x.shape[1])
        if positions:
            x = insert_tokens(x, self.cls_token, positions)
        if self.pos_embed is not None:
            x = x + self._position_embedding(size, positions)
        return x.to(torch.promote_types(x.dtype, torch.float32)), size

    def _padding(self, side: int) -> int:
        patch, (stride, _) = self.patch_size, self.patch_embed.conv1.stride
        return (patch - side) % stride

    def _position_embedding(self, size: tuple[int, int], positions: tuple[int, ...]) -> Tensor:
        """The embedding of a grid; rows of class tokens are no part of what is resized."""
        table = self.pos_embed
        if size == self.grid and self.used_cls_place == self.cls_place:
            return table
        return self._resize_positions(table, self.grid, size, positions)

    def _resize_positions(
        self, table: Tensor, grid: tuple[int, int], size: tuple[int, int], positions: Sequence[int]
    ) -> Tensor:
        """The embedding of ``grid`` for ``size``, its class rows at other positions."""
        stored = cls_positions(self.cls_place, grid[0] * grid[1])
        rows = table[0, list(stored)][:, None]
        table = resize_table(remove_tokens(table, stored), grid, size)
        return insert_tokens(table, rows, positions)

    def lacks_cls_rows(self, num_rows: int) -> bool:
        """Whether a position embedding of so many rows is one without those of class tokens.

        The published detectors and segmentors have dropped the rows together with the tokens.
        Only models with ``drop_cls_token`` load such a table: of the grid that they are made for,
        or of a square one. Where it can also be one with class rows, it is.
        """
        num_class, num_patches = CLASS_TOKENS[self.cls_place], math.prod(self.grid)
        if self.used_cls_place == self.cls_place:
            return False
        if num_rows == num_patches + num_class or _side(num_rows - num_class):
            return False
        return num_rows == num_patches or _side(num_rows) > 0

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Bring position tables into this model's form first.

        Unused rows of class tokens are put where a table has none, as zeros, and a table of another
        square grid is resized, as of stride 16 for stride 8. One that fits no square grid stays as
        it is, and loading reports its shape.
        """
        num_class = CLASS_TOKENS[self.cls_place]
        key = f"{prefix}pos_embed"
        table = state_dict.get(key)
        if table is not None and self.pos_embed is not None and table.dim() == 3:
            if self.lacks_cls_rows(table.shape[1]):
                rows = table.new_zeros(num_class, 1, table.shape[2])
                positions = cls_positions(self.cls_place, table.shape[1])
                state_dict[key] = table = insert_tokens(table, rows, positions)
            side = _side(table.shape[1] - num_class)
            if side and table.shape[1] != self.pos_embed.shape[1]:
                if self.grid[0] != self.grid[1]:
                    warnings.warn(
                        f"a position embedding of {side**2} patches is taken for one of a square"
                        f" grid and resized to {self.grid[0]}x{self.grid[1]}",
                        stacklevel=2,
                    )
                positions = cls_positions(self.cls_place, math.prod(self.grid))
                state_dict[key] = self._resize_positions(table, (side, side), self.grid, positions)
        for name in (f"{prefix}rope.freqs_cos", f"{prefix}rope.freqs_sin"):
            table = state_dict.get(name)
            if table is not None and self.rope is not None and table.dim() == 2:
                side = _side(len(table))
                if side and len(table) != math.prod(self.grid):
                    state_dict[name] = resize_table(table[None], (side, side), self.grid)[0]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _format(self, x: Tensor, size: tuple[int, int], positions: tuple[int, ...]) -> Tensor:
        if self.out_type == "raw":
            return x
        if self.out_type == "last_token":
            return x[:, -1]
        if self.out_type == "cls_token":
            return x[:, list(positions)].mean(1)
        x = remove_tokens(x, positions)
        if self.out_type == "avg_featmap":
            return x.mean(1)
        return x.transpose(1, 2).unflatten(2, size).contiguous()

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must be (B, {self.in_channels}, H, W), got {tuple(x.shape)}")
        height, width = x.shape[2:]
        if min(height, width) < self.patch_size:
            raise ValueError(
                f"x must be at least {self.patch_size}x{self.patch_size} pixels, the size of a"
                f" patch, got {height}x{width}"
            )

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed, *self.layers[: self.frozen_stages + 1]]
        for k, i in enumerate(self.out_indices):
            if i <= self.frozen_stages:
                frozen.append(getattr(self, f"norm{k}"))
        for module in frozen:
            module.eval()
            module.requires_grad_(False)
        for embedding in (self.pos_embed, self.cls_token):
            if embedding is not None:
                embedding.requires_grad = False

    def train(self, mode: bool = True) -> PlainBackbone:
        """Set the mode, except for what ``frozen_stages`` holds in eval mode."""
        super().train(mode)
        self._freeze_stages()
        return self
