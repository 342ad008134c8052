"""Base class of the plain backbones: patches, class tokens, positions, layers of one width."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, ModuleList
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from mmvssm.ops.precision import compute_dtype
from mmvssm.ops.tracers import surely_equal

from ..layers import (
    FreezeMixin,
    LoadingMixin,
    MambaMixer,
    PatchEmbed,
    PlainLayer,
    PositionGrid,
    build_norm,
    check_mixer,
    drop_parts,
    norm_stream,
)
from ..layers.checks import (
    at_least,
    check_images,
    complete_arch,
    one_of,
    read_indices,
)
from ..layers.tokens import (
    CLASS_TOKENS,
    OUT_TYPES,
    RotaryTables,
    cls_positions,
    format_tokens,
    insert_tokens,
    rotate,
)

NORMS = ("rms", "ln")
UNIT_RMS_NORM = dict(type="Constant", layer="RMSNorm", val=1.0)
FEATURES = ("residual", "mixer")


class PlainBackbone(LoadingMixin, FreezeMixin, BaseModule):
    """Backbone of layers of one width on a sequence of patches and class tokens.

    A subclass declares its variants as data and builds its mixers in :meth:`build_mixer`. The
    residual stream is at least float32, whatever the precision of the model.

    Attributes:
        arch_settings: Fields by name of the variant.
        arch_defaults: Default of every field. This class reads ``embed_dims``, ``num_layers``,
            ``patch_size``, ``stride``, ``norm``, ``pos_embed``, ``rope``, ``cls_token`` and
            ``mixer``.
        class_tokens: Values of ``cls_token`` that the family supports.
        mixer_fixed: Arguments of the mixer that the field ``mixer`` must not set.
        default_init_cfg: Initialisation for ``init_cfg=None``.

    Args:
        arch: A name of ``arch_settings``, or a dict of fields.
        img_size: Image size ``S`` or ``(H, W)`` of the position embedding, usually that of
            pretraining. For other images, and for checkpoints with another square grid, the
            embedding is resized bicubically.
        in_channels: Channels of the image.
        cls_token: Field ``cls_token``; None for that of ``arch``.
        drop_cls_token: Leave class tokens out of the sequence, as the published detectors and
            segmentors do. The position embedding keeps their rows, so that it fits the weights of
            a classifier; a checkpoint may lack them.
        rope: Field ``rope``; None for that of ``arch``.
        norm: Field ``norm``; None for that of ``arch``.
        drop_path_rate: Drop-path rate of the last layer; it grows linearly from 0.
        out_indices: Layers whose output is returned, counted from 0, or from the end if negative.
            Layers after the last of them are not built, and their weights in a checkpoint are
            ignored.
        out_type: ``'cls_token'`` (class token, or the mean of two, ``(B, C)``), ``'featmap'``
            (patch tokens as ``(B, C, H, W)``), ``'avg_featmap'`` (their mean, ``(B, C)``),
            ``'last_token'`` (last token of the sequence, ``(B, C)``) or ``'raw'`` (sequence
            with its class tokens, ``(B, L, C)``); None for ``'cls_token'`` if there is one, else
            ``'avg_featmap'``.
        out_norm: Whether every returned output passes through its own norm ``norm{k}``, where
            ``k`` is the position in ``out_indices``: True for a norm of the layers' kind, or the
            kind ``'rms'`` or ``'ln'``.
        feature: Feature of a layer to return: ``'residual'`` (the residual stream as the next
            layer reads it) or ``'mixer'`` (the layer's contribution to it); one for all, or one
            for each index.
        frozen_stages: Layers, counted from 0, up to which parameters are frozen and modules kept
            in eval mode, together with patch, class and position embeddings; -1 for none.
        norm_eval: No effect, since there are no batch norms. Accepted because all backbones
            take it.
        odd_size: What to do with pixels that do not fill a patch: ``'crop'`` them, or
            ``'pad'`` with zeros at the right and bottom.
        with_cp: Recompute layers in the backward pass to save memory.
        init_cfg: Initialisation; None for the family's own. Scan parameters and ``out_proj`` are
            always initialised by their own rule, unless a checkpoint is loaded.

    Raises:
        ValueError: If ``arch`` or another argument is not one of its choices; in the forward
            pass, if the image has another number of channels or is smaller than a patch.
    """

    arch_settings: ClassVar[dict[str, dict]]
    arch_defaults: ClassVar[dict]
    class_tokens: ClassVar[tuple[str, ...]] = tuple(CLASS_TOKENS)
    mixer_fixed: ClassVar[tuple[str, ...]] = ("depth", "init_cfg")
    default_init_cfg: ClassVar[list[dict]]

    def __init__(
        self,
        arch: str | Mapping = "tiny",
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
        self.num_layers, self.patch_size = arch["num_layers"], arch["patch_size"]
        one_of("cls_token", arch["cls_token"], self.class_tokens)
        self.odd_size = one_of("odd_size", odd_size, ("crop", "pad"))
        self.out_indices = read_indices(out_indices, self.num_layers, "layers", negative=True)
        count = len(self.out_indices)
        features = [feature] * count if isinstance(feature, str) else feature
        if len(features) != count:
            raise ValueError(
                f"feature must be one name, or one for each of the {count} out_indices,"
                f" got {feature}"
            )
        self.features = tuple(one_of("feature", word, FEATURES) for word in features)
        has_cls_token = arch["cls_token"] != "none" and not drop_cls_token
        if out_type is None:
            out_type = "cls_token" if has_cls_token else "avg_featmap"
        self.out_type = one_of("out_type", out_type, OUT_TYPES)
        if out_type == "cls_token" and not has_cls_token:
            raise ValueError(
                "out_type 'cls_token' needs a class token, got"
                f" cls_token={arch['cls_token']!r} and drop_cls_token={drop_cls_token}"
            )
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self.check_frozen_stages(self.num_layers)

        norm = one_of("norm", arch["norm"], NORMS)
        self.patch_embed = PatchEmbed(
            in_channels, self.embed_dims, self.patch_size, norm=None, stride=arch["stride"]
        )
        img_size = to_2tuple(img_size)
        if min(img_size) < self.patch_size:
            raise ValueError(
                f"img_size must be at least {self.patch_size}, the patch size, got {img_size}"
            )
        grid = tuple(self.patch_embed.output_size(side) for side in img_size)
        self.positions = PositionGrid(grid, arch["cls_token"], drop_cls_token)
        self.cls_token = self.pos_embed = self.rope = None
        if has_cls_token:
            num_cls = CLASS_TOKENS[self.positions.cls_place]
            self.cls_token = nn.Parameter(torch.empty(num_cls, 1, self.embed_dims))
        if arch["pos_embed"]:
            shape = (1, self.positions.num_rows, self.embed_dims)
            self.pos_embed = nn.Parameter(torch.empty(shape))
            # its shape stores the grid of the table, also in saved and renamed weights
            self.register_buffer("pos_grid", torch.empty(*grid, 0))
        if arch["rope"]:
            self.rope = RotaryTables(self.embed_dims, grid)

        rates = torch.linspace(0, drop_path_rate, self.num_layers, device="cpu").tolist()
        self.layers = ModuleList(
            PlainLayer(self.embed_dims, self.build_mixer(arch, i), norm, rate, with_cp)
            # an unused layer would get no gradient, which DistributedDataParallel rejects
            for i, rate in enumerate(rates[: max(self.out_indices) + 1])
        )
        kind = norm if out_norm is True else out_norm
        for k in range(len(self.out_indices)):
            out = build_norm(one_of("out_norm", kind, NORMS), self.embed_dims) if kind else None
            self.add_module(f"norm{k}", out or nn.Identity())
        # a class token of zeros would close its own gate in every layer
        self.init_embeddings()
        self.freeze()

    @classmethod
    def read_arch(cls, arch: str | Mapping, **fields) -> dict:
        """Return the fields of ``arch`` with defaults, and with ``fields`` that are not None."""
        arch = complete_arch(
            arch, cls.arch_settings, cls.arch_defaults, required=("embed_dims", "num_layers")
        )
        check_mixer(arch["mixer"], MambaMixer, cls.mixer_fixed)
        return {**arch, **{name: value for name, value in fields.items() if value is not None}}

    @abstractmethod
    def build_mixer(self, arch: dict, layer: int) -> nn.Module:
        """Build the mixer of a layer: ``(B, L, C)``, grid, class positions -> ``(B, L, C)``.

        Args:
            arch: All fields.
            layer: Index of the layer.
        """

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Return the depth of a parameter in the network, for layer-wise learning-rate decay.

        Args:
            param_name: Name of the parameter in the model.
            prefix: Prefix of this backbone's parameters in the model.

        Returns:
            The depth (0 for patch, class and position embeddings, ``l + 1`` for layer ``l``, and
            the last depth for everything else), and the number of depths, ``num_layers + 2``.
        """
        num_depths = self.num_layers + 2
        depth = num_depths - 1
        first, _, rest = param_name.removeprefix(prefix).partition(".")
        if param_name.startswith(prefix) and first in ("patch_embed", "pos_embed", "cls_token"):
            depth = 0
        elif param_name.startswith(prefix) and first == "layers":
            depth = int(rest.split(".")[0]) + 1
        return depth, num_depths

    def init_weights(self) -> None:
        """Initialise by :meth:`init_embeddings`, then as ``init_cfg`` says."""
        self.init_embeddings()
        super().init_weights()

    def init_embeddings(self) -> None:
        """Initialise position and class embeddings from a normal distribution of std 0.02."""
        for embedding in (self.pos_embed, self.cls_token):
            if embedding is not None:
                nn.init.trunc_normal_(embedding, std=0.02, a=-0.1, b=0.1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the layers of ``out_indices``, in their order.

        Args:
            x: Images ``(B, in_channels, H, W)``.

        Returns:
            One tensor per index; ``out_type`` determines its shape.
        """
        check_images(x, self.in_channels, self.patch_size, "the size of a patch")
        x, size = self.embed(x)
        positions = self.cls_positions(size[0] * size[1])
        rope = None if self.rope is None else self.rope(size, positions)
        kept = {}
        for i, layer in enumerate(self.layers):
            x, h = layer(x, size, positions, rope)
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
            out = out.to(self.patch_embed.conv1.weight.dtype)
            outs.append(format_tokens(out, self.out_type, size, positions))
        return tuple(outs)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Compute the input of the first layer.

        Args:
            x: Images ``(B, in_channels, H, W)``.

        Returns:
            Tokens ``(B, L, C)`` and the grid (rows, columns) of the patches.
        """
        if self.odd_size == "pad":
            patch, (stride, _) = self.patch_size, self.patch_embed.conv1.stride
            # avoids negative operands, for which torch.compile has no floor division
            counts = [(side - patch + stride - 1) // stride for side in x.shape[2:]]
            height, width = (n * stride + patch - side for n, side in zip(counts, x.shape[2:]))
            if not (surely_equal(height, 0) and surely_equal(width, 0)):
                x = F.pad(x, (0, width, 0, height))
        x = self.patch_embed(x)
        size, x = (x.shape[1], x.shape[2]), x.flatten(1, 2)
        positions = self.cls_positions(x.shape[1])
        if positions:
            x = insert_tokens(x, self.cls_token, positions)
        if self.pos_embed is not None:
            x = x + self.positions.at(self.pos_embed, size)
        return x.to(compute_dtype(x.dtype)), size

    def cls_positions(self, num_patches: int) -> tuple[int, ...]:
        """Return the indices of class tokens in a sequence with ``num_patches`` patches."""
        return cls_positions(self.positions.used_cls_place, num_patches)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Resize position embeddings of other grids first.

        The weights of layers that are not built are ignored.
        """
        drop_parts(state_dict, f"{prefix}layers.", len(self.layers))
        if self.pos_embed is not None and f"{prefix}pos_embed" in state_dict:
            table, grid = f"{prefix}pos_embed", f"{prefix}pos_grid"
            state_dict[table] = self.positions.fit(state_dict[table], state_dict.get(grid))
            state_dict[grid] = self.pos_grid
        super()._load_from_state_dict(state_dict, prefix, *args)

    def frozen_parts(self) -> Iterator[nn.Module | nn.Parameter]:
        """Yield patch, class and position embeddings, layers and their output norms."""
        yield self.patch_embed
        yield from self.layers[: self.frozen_stages + 1]
        for k, i in enumerate(self.out_indices):
            if i <= self.frozen_stages:
                yield getattr(self, f"norm{k}")
        yield from (part for part in (self.pos_embed, self.cls_token) if part is not None)
