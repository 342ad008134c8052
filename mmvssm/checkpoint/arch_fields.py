"""Fields of our backbones' archs and their constructor options, read from the shapes of weights.

Shapes do not show everything. These get their defaults, or a release's where what is seen is of
that release alone (the second half of MSVMamba's table, the rotary embedding of the first Vim):

- all families: activations, initialisation, ``force_fp32`` and other matters of precision;
- hierarchical: ``odd_size``, the kind of scan, ``cascade_flip``, ``gate_act``, ``out_act``, and
  which of the mixer's norms without weights it is;
- MSVMamba: ``mlp_norm`` and the mixer's ``norm_of``, ``upsample`` and ``full_index``;
- LocalVMamba and LocalVim: ``directions`` other than ``'search'``, and ``way_back``;
- plain: the place of a single class token, ``divide_out``, ``feature``, ``out_type``, the layers
  of ``out_indices`` (taken at equal distances) and the stride where 224 pixels do not explain it.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from mmvssm.models import MS2D, SS2D, MambaMixer
from mmvssm.models.backbones.local_directions import SEARCH, UNSEARCHED
from mmvssm.models.layers.tokens import CLASS_TOKENS

IMG_SIZE = 224
#: Beyond these no network of ours goes, and building one would take long.
MAX_STAGES, MAX_PATCH = 8, 256

#: Of one class token the place is not seen: the families' usual one.
PLACES = {0: "none", 1: "middle", 2: "double"}
#: What the first Vim had besides its rotary embedding.
FIRST_VIM = dict(places={**PLACES, 1: "head"}, fields=dict(divide_out=False))
#: What MSVMamba's third version has besides its stem and downsampling.
MSVMAMBA_V3 = dict(norm_of="sum", upsample="nearest", full_index=0, force_fp32=False)

#: Where mixers of two families differ from SS2D's defaults, as published.
_GATED = dict(d_state=16, ssm_ratio=2.0, gate=True, conv_bias=True)
_MIXERS: dict[str, tuple[Callable, dict]] = {
    "vmamba": (SS2D, {}),
    "efficient_vmamba": (SS2D, _GATED),
    "local_vmamba": (SS2D, _GATED),
    "msvmamba": (MS2D, {}),
    "vim": (MambaMixer, {}),
    "local_vim": (MambaMixer, {}),
}
_LAYER_PREFIX = re.compile(r"^layers\.\d+\.|^stages\.\d+\.blocks\.\d+\.")


class Unreadable(ValueError):
    """Shapes are not those of the family's networks."""


class Shapes:
    """Shapes by key, and questions about them.

    Args:
        shapes: Shapes by key, without the prefix ``backbone.``.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self.shapes = {key: tuple(shape) for key, shape in shapes.items()}
        #: Prefixes of blocks or layers, each once.
        self.blocks = tuple(
            dict.fromkeys(m.group() for m in map(_LAYER_PREFIX.match, self.shapes) if m)
        )

    def __contains__(self, key: str) -> bool:
        return key in self.shapes

    def dim(self, key: str, axis: int) -> int:
        """Length of an axis.

        Raises:
            Unreadable: If there is no such tensor or axis, or it is empty.
        """
        shape = self.shapes.get(key, ())
        if not axis < len(shape) or shape[axis] < 1:
            raise Unreadable(f"{key!r} has no axis {axis} of a length above 0")
        return shape[axis]

    def numbers(self, pattern: str) -> tuple[int, ...]:
        """What the pattern's group, a number, is in keys that it matches; ascending."""
        matches = (re.match(pattern, key) for key in self.shapes)
        return tuple(sorted({int(m.group(1)) for m in matches if m}))

    def any(self, pattern: str) -> bool:
        """Whether the pattern is found in a key."""
        return any(re.search(pattern, key) for key in self.shapes)

    def having(self, name: str) -> list[str]:
        """Prefixes of blocks or layers that have a tensor of this name."""
        return [block for block in self.blocks if block + name in self.shapes]


def outline(shapes: Shapes, family: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Widths and depths of the stages; a plain backbone is taken as one stage.

    Raises:
        Unreadable: If they are not to be seen.
    """
    if family in ("vim", "local_vim"):
        return (shapes.dim("patch_embed.conv1.weight", 0),), (len(shapes.blocks),)
    conv = "conv2" if "patch_embed.conv2.weight" in shapes else "conv1"
    dims = [shapes.dim(f"patch_embed.{conv}.weight", 0)]
    while kind := _downsample_layer(shapes, len(dims) - 1):
        dims.append(shapes.dim(kind, 0))
        if len(dims) > MAX_STAGES:
            raise Unreadable(f"there are more than {MAX_STAGES} stages")
    depths = [
        sum(block.startswith(f"stages.{i}.") for block in shapes.blocks) for i in range(len(dims))
    ]
    return tuple(dims), tuple(depths)


def outline_of(arch: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The same of the complete fields of an arch."""
    dims = arch["embed_dims"]
    if "num_layers" in arch:
        return (dims,), (arch["num_layers"],)
    depths = tuple(arch["depths"])
    if isinstance(dims, int):
        dims = [dims * 2**i for i in range(len(depths))]
    return tuple(dims), depths


def read_fields(shapes: Shapes, family: str, defaults: Mapping[str, Any]) -> dict:
    """Fields of the arch that differ from their defaults.

    Args:
        shapes: Shapes of a backbone.
        family: A family.
        defaults: ``arch_defaults`` of the family's class.

    Raises:
        Unreadable: If no network of the family has such shapes.
    """
    read = _plain_fields if family in ("vim", "local_vim") else _hierarchical_fields
    fields = read(shapes, family)
    return {
        name: value
        for name, value in fields.items()
        if name in defaults and value != defaults[name]
    }


def read_options(shapes: Shapes, arch: Mapping[str, Any], family: str) -> dict:
    """Constructor arguments that shapes show, where they differ from the defaults and the arch.

    Args:
        shapes: Shapes of a backbone.
        arch: Complete fields of its arch.
        family: A family.

    Raises:
        Unreadable: If the stem is not to be seen, or position embeddings are of no square grid.
    """
    options: dict[str, Any] = {}
    if (channels := shapes.dim("patch_embed.conv1.weight", 1)) != 3:
        options["in_channels"] = channels
    if shapes.any(r"\.merge\.weights$") and arch.get("directions") != SEARCH:
        options["directions"] = SEARCH
    read = _plain_options if family in ("vim", "local_vim") else _hierarchical_options
    return {**options, **read(shapes, arch, family)}


def ratio(pairs: Sequence[tuple[int, int]], default: float) -> float:
    """The plainest ratio ``r`` with ``int(r * width) == wide`` for all ``(width, wide)``.

    Raises:
        Unreadable: If there is none.
    """
    low = max(Fraction(wide, width) for width, wide in pairs)
    high = min(Fraction(wide + 1, width) for width, wide in pairs)
    plain = [math.ceil(low * q) / q for q in range(1, 65)]
    for value in (default, *plain, float((low + high) / 2)):
        if all(int(value * width) == wide for width, wide in pairs):
            return value
    raise Unreadable(f"no ratio makes {pairs}")


def _hierarchical_fields(shapes: Shapes, family: str) -> dict:
    dims, depths = outline(shapes, family)
    stem = "conv" if "patch_embed.conv2.weight" in shapes else "patch"
    kernel = shapes.dim("patch_embed.conv1.weight", 2)
    patch_size = 2 * (kernel - 1) if stem == "conv" else kernel
    if patch_size > MAX_PATCH:
        raise Unreadable(f"patches are larger than {MAX_PATCH} pixels")
    doubled = dims == tuple(dims[0] * 2**i for i in range(len(dims)))
    fields = dict(
        embed_dims=dims[0] if doubled else dims,
        depths=depths,
        stem=stem,
        patch_size=patch_size,
        patch_norm=shapes.any(r"^patch_embed\.norm1\."),
        norm="bn" if shapes.any(r"^(patch_embed|stages\.\d.*)\.norm[12]?\.running_mean$") else "ln",
        pos_embed="pos_embed" in shapes,
        mlp_ratio=0.0,
    )
    if layer := _downsample_layer(shapes, 0):
        merges = layer.endswith("reduction.weight")
        fields["downsample"] = "merge" if merges else f"conv{shapes.dim(layer, 2)}"
    if blocks := shapes.having("mlp.fc2.weight"):
        pairs = [(shapes.dim(f"{b}mlp.fc2.weight", 0), _wide(shapes, b)) for b in blocks]
        fields["mlp_ratio"] = ratio(pairs, 4.0)
        fields["gated_mlp"] = shapes.dim(f"{blocks[0]}mlp.fc1.weight", 0) == 2 * pairs[0][1]
    if blocks := shapes.having("project.weight"):
        pairs = [(_out(shapes, b, "project"), shapes.dim(f"{b}project.weight", 1)) for b in blocks]
        fields["expand_ratio"] = ratio(pairs, 4.0)
        squeezed = [(shapes.dim(f"{b}se.fc1.weight", 1), _out(shapes, b, "se.fc1")) for b in blocks]
        fields["se_ratio"] = ratio(squeezed, 0.125)
    if family == "efficient_vmamba":
        fields["stage_types"] = _stage_types(shapes, len(dims))
    inside = "mixer.ss2d." if family == "efficient_vmamba" else "mixer."
    mixers = [block + inside for block in shapes.having(f"{inside}A_logs")]
    fields["mixer"] = _mixer(shapes, mixers, family) if mixers else None
    if family == "efficient_vmamba" and not mixers:
        fields["mixer"] = {}
    if family == "local_vmamba":
        fields["directions"] = _directions(shapes, mixers)
    if family == "msvmamba" and (stem, fields.get("downsample")) == ("conv", "conv3"):
        fields["mlp_norm"] = "post"
        fields["mixer"] = {**(fields["mixer"] or {}), **MSVMAMBA_V3}
    return fields


def _downsample_layer(shapes: Shapes, stage: int) -> str | None:
    names = (f"stages.{stage}.downsample.{name}.weight" for name in ("reduction", "conv"))
    return next((name for name in names if name in shapes), None)


def _out(shapes: Shapes, block: str, layer: str) -> int:
    return shapes.dim(f"{block}{layer}.weight", 0)


def _wide(shapes: Shapes, block: str) -> int:
    return shapes.dim(f"{block}mlp.fc2.weight", 1)


def _stage_types(shapes: Shapes, num_stages: int) -> list[str] | None:
    """None for the default, scans in the first two stages."""
    types = []
    for stage in range(num_stages):
        residual = stage > 1
        if shapes.any(rf"^stages\.{stage}\.blocks\."):
            residual = shapes.any(rf"^stages\.{stage}\.blocks\.\d+\.expand\.")
        types.append("inverted_residual" if residual else "es2d")
    usual = ["es2d"] * min(num_stages, 2) + ["inverted_residual"] * max(num_stages - 2, 0)
    return None if types == usual else types


def _mixer(shapes: Shapes, mixers: Sequence[str], family: str) -> dict:
    """Fields of all mixers, read from their prefixes, that differ from their defaults."""
    function, changed = _MIXERS[family]
    parameters = inspect.signature(function).parameters.values()
    defaults = {**{p.name: p.default for p in parameters}, **changed}
    first = mixers[0]
    pairs = [(_out(shapes, m, "out_proj"), shapes.dim(f"{m}out_proj.weight", 1)) for m in mixers]
    inner = pairs[0][1]
    fields: dict[str, Any] = dict(
        ssm_ratio=ratio(pairs, defaults["ssm_ratio"]),
        gate=_out(shapes, first, "in_proj") == 2 * inner,
        scalar_decay=f"{first}dt_projs_weight" not in shapes,
    )
    states = shapes.dim(f"{first}A_logs", 1)
    if fields["scalar_decay"]:
        states = (shapes.dim(f"{first}x_proj_weight", 1) - states) // 2
        # the only family of such models has this one of the two that are possible
        fields["ssm_init"] = "v2"
    fields["d_state"] = states
    ranks = [shapes.dim(f"{mixer}x_proj_weight", 1) - 2 * states for mixer in mixers]
    usual = [math.ceil(width / 16) for width, _ in pairs]
    fields["dt_rank"] = None if ranks == usual else ranks[0]
    for name, conv in (("d_conv", "conv2d"), ("small_conv", "small_conv2d"), ("d_conv", "conv1d")):
        if f"{first}{conv}.weight" in shapes:
            fields[name] = shapes.dim(f"{first}{conv}.weight", 2)
            fields["conv_bias"] = f"{first}{conv}.bias" in shapes
    fields.setdefault("d_conv", 1)
    fields["out_norm"] = _mixer_norm(shapes, first)
    return {name: value for name, value in fields.items() if value != defaults.get(name, value)}


def _mixer_norm(shapes: Shapes, mixer: str) -> str:
    if f"{mixer}out_norm.0.weight" in shapes:
        return "cnorm"
    norm = shapes.shapes.get(f"{mixer}out_norm.weight")
    if norm is None:
        return "none"
    return "layernorm" if len(norm) == 1 else "dwconv3"


def _directions(shapes: Shapes, mixers: Sequence[str]) -> str | None:
    """``'search'`` or None, for the default.

    Raises:
        Unreadable: If they are of another number, so that they cannot be the default.
    """
    if shapes.any(r"\.merge\.weights$"):
        return SEARCH
    counts = {shapes.dim(f"{mixer}x_proj_weight", 0) for mixer in mixers}
    if len(counts) == 1 and counts != {len(UNSEARCHED)}:
        raise Unreadable(
            f"every layer scans in {counts.pop()} directions, which are not stored with weights"
        )
    return None


def _hierarchical_options(shapes: Shapes, arch: Mapping[str, Any], family: str) -> dict:
    options: dict[str, Any] = {}
    stages = tuple(range(len(arch["depths"])))
    norms = tuple(i for i in shapes.numbers(r"^norm(\d{1,3})\.") if i in stages)
    if not norms:
        options["out_norm"] = False
    if (norms or stages) != (0, 1, 2, 3):
        options["out_indices"] = norms or stages
    if family == "vmamba" and "pos_embed" in shapes:
        sides = tuple(shapes.dim("pos_embed", axis) * arch["patch_size"] for axis in (2, 3))
        if sides != (IMG_SIZE, IMG_SIZE):
            options["img_size"] = sides[0] if sides[0] == sides[1] else sides
    return options


def _plain_fields(shapes: Shapes, family: str) -> dict:
    (width,), (depth,) = outline(shapes, family)
    patch_size = shapes.dim("patch_embed.conv1.weight", 2)
    if patch_size > MAX_PATCH:
        raise Unreadable(f"patches are larger than {MAX_PATCH} pixels")
    mixers = [f"{layer}mixer." for layer in shapes.having("mixer.A_logs")]
    if not mixers:
        raise Unreadable("there are no layers with scans")
    num_class, side = _tokens(shapes)
    rope = "rope.freqs_cos" in shapes
    fields = dict(
        embed_dims=width,
        num_layers=depth,
        patch_size=patch_size,
        cls_token=PLACES[num_class],
        pos_embed="pos_embed" in shapes,
        rope=rope,
        norm=_layer_norm(shapes),
        mixer=_mixer(shapes, mixers, family),
    )
    stride = patch_size // 2
    if side and stride and side == (IMG_SIZE - patch_size) // stride + 1:
        fields["stride"] = stride
    if family == "local_vim":
        return {**fields, "directions": _directions(shapes, mixers)}
    fields["bidirectional"] = shapes.dim(f"{mixers[0]}x_proj_weight", 0) != 1
    if rope:
        fields |= dict(cls_token=FIRST_VIM["places"][num_class], **FIRST_VIM["fields"])
    return fields


def _tokens(shapes: Shapes) -> tuple[int, int | None]:
    """Number of class tokens, and side of the square grid; None where no table tells.

    Raises:
        Unreadable: If tables are of no square grid.
    """
    tokens = shapes.dim("cls_token", 0) if "cls_token" in shapes else 0
    if "pos_embed" not in shapes:
        rows = shapes.dim("rope.freqs_cos", 0) if "rope.freqs_cos" in shapes else None
        counts: tuple[int, ...] = (0,)
    else:
        # without tokens in the sequence, the table may have kept their rows
        rows, counts = shapes.dim("pos_embed", 1), (tokens,) if tokens else tuple(PLACES)
    if tokens not in PLACES:
        raise Unreadable(f"there are {tokens} class tokens")
    if rows is None:
        return tokens, None
    for count in counts:
        side = math.isqrt(max(rows - count, 0))
        if side and side**2 + count == rows:
            return max(count, tokens), side
    raise Unreadable(f"the table of {rows} positions is that of no square image")


def _layer_norm(shapes: Shapes) -> str:
    return "ln" if shapes.having("norm.bias") else "rms"


def _plain_options(shapes: Shapes, arch: Mapping[str, Any], family: str) -> dict:
    options: dict[str, Any] = {}
    num_class, side = _tokens(shapes)
    place, norm, rope = arch["cls_token"], _layer_norm(shapes), "rope.freqs_cos" in shapes
    if num_class != CLASS_TOKENS[place]:
        place = PLACES[num_class]
    if rope != arch["rope"]:
        options["rope"] = rope
        if rope and family == "vim":
            place = FIRST_VIM["places"][num_class]
            options |= FIRST_VIM["fields"]
    if place != arch["cls_token"]:
        options["cls_token"] = place
    if num_class and "cls_token" not in shapes:
        options["drop_cls_token"] = True
    if norm != arch["norm"]:
        options["norm"] = norm
    if side:
        patch = arch["patch_size"]
        stride = arch["stride"] or patch
        if side != (IMG_SIZE - patch) // stride + 1:
            options["img_size"] = (side - 1) * stride + patch
    return {**options, **_plain_outputs(shapes, arch["num_layers"], norm)}


def _plain_outputs(shapes: Shapes, depth: int, norm: str) -> dict:
    options: dict[str, Any] = {}
    places = shapes.numbers(r"^norm(\d{1,3})\.")
    if not places:
        return dict(out_norm=False)
    out_norm = "ln" if f"norm{places[0]}.bias" in shapes else "rms"
    if out_norm != norm:
        options["out_norm"] = out_norm
    count = min(places[-1] + 1, depth)
    if count > 1:
        options["out_indices"] = tuple((k + 1) * depth // count - 1 for k in range(count))
    return options
