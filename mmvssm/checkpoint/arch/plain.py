"""Fields and options of plain backbones, read from the shapes of their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmvssm.models.backbones.local_directions import SEARCH
from mmvssm.models.layers.tokens import CLASS_TOKENS

from .fields import IMG_SIZE, is_search, read_directions, read_mixer, read_patch_size
from .shapes import Shapes, Unreadable

#: Places of class tokens by their number; of a single one the place is not seen.
PLACES = {0: "none", 1: "middle", 2: "double"}
#: The first Vim, the one with a rotary embedding, had it before all others, and added scans up.
FIRST_VIM_PLACES = {**PLACES, 1: "head"}
FIRST_VIM = dict(divide_out=False)


def outline(shapes: Shapes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Width and number of layers, each as a tuple of one.

    Raises:
        Unreadable: If there are no patches.
    """
    return (shapes.dim("patch_embed.conv1.weight", 0),), (len(shapes.blocks),)


def outline_of(arch: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Width and number of layers, from the complete fields of an arch."""
    return (arch["embed_dims"],), (arch["num_layers"],)


def read_fields(shapes: Shapes, family: str) -> dict:
    """Fields of the arch.

    Args:
        shapes: Shapes of a backbone.
        family: The family.

    Raises:
        Unreadable: If no network of the family has such shapes, or its position embeddings are
            those of no square image.
    """
    (width,), (depth,) = outline(shapes)
    mixers = [f"{layer}mixer." for layer in shapes.having("mixer.A_logs")]
    if not mixers:
        raise Unreadable("no layer has a scan")
    patch_size = read_patch_size(shapes)
    num_class, side = _tokens(shapes)
    rope = _has_rope(shapes)
    fields = dict(
        embed_dims=width,
        num_layers=depth,
        patch_size=patch_size,
        cls_token=PLACES[num_class],
        pos_embed="pos_embed" in shapes,
        rope=rope,
        norm=_norm(shapes),
        mixer=read_mixer(shapes, mixers, family),
    )
    half = max(patch_size // 2, 1)
    if side not in (None, _grid(patch_size, patch_size)) and side == _grid(patch_size, half):
        fields["stride"] = half
    if family == "local_vim":
        return {**fields, "directions": read_directions(shapes, mixers)}
    fields["bidirectional"] = shapes.dim(f"{mixers[0]}x_proj_weight", 0) != 1
    if rope:
        fields.update(FIRST_VIM, cls_token=FIRST_VIM_PLACES[num_class])
    return fields


def read_options(shapes: Shapes, arch: Mapping[str, Any], family: str) -> dict:
    """Constructor arguments that shapes show, where they differ from defaults and arch.

    Args:
        shapes: Shapes of a backbone.
        arch: Complete fields of its arch.
        family: The family.

    Raises:
        Unreadable: If there are no patches, or the position embeddings are those of no square
            image.
    """
    options: dict[str, Any] = {}
    if (channels := shapes.dim("patch_embed.conv1.weight", 1)) != 3:
        options["in_channels"] = channels
    num_class, side = _tokens(shapes)
    place, norm, rope = arch["cls_token"], _norm(shapes), _has_rope(shapes)
    if num_class == 0 and rope == arch["rope"] and _is_dense(shapes):
        # as their authors save them, without the rows; the network is that of 'none'
        num_class = CLASS_TOKENS[place]
    if CLASS_TOKENS[place] != num_class:
        place = PLACES[num_class]
    if rope != arch["rope"]:
        options["rope"] = rope
        if rope and family == "vim":
            options.update(FIRST_VIM)
            place = FIRST_VIM_PLACES[num_class]
    if place != arch["cls_token"]:
        options["cls_token"] = place
    if num_class and "cls_token" not in shapes:
        options["drop_cls_token"] = True
    if norm != arch["norm"]:
        options["norm"] = norm
    if is_search(shapes) and arch.get("directions", SEARCH) != SEARCH:
        options["directions"] = SEARCH
    stride = arch["stride"] or arch["patch_size"]
    if side not in (None, _grid(arch["patch_size"], stride)):
        options["img_size"] = (side - 1) * stride + arch["patch_size"]
    return {**options, **_outputs(shapes, arch["num_layers"], norm)}


def _is_dense(shapes: Shapes) -> bool:
    """Whether tokens are read as maps: a classifier has one norm behind its last layer."""
    return "pos_embed" in shapes and len(shapes.numbers(r"norm(\d{1,3})\.")) != 1


def _outputs(shapes: Shapes, depth: int, norm: str) -> dict:
    """Options of the outputs' norms, of which each has its own."""
    places = shapes.numbers(r"norm(\d{1,3})\.")
    if not places:
        return dict(out_norm=False)
    options: dict[str, Any] = {}
    out_norm = "ln" if f"norm{places[0]}.bias" in shapes else "rms"
    if out_norm != norm:
        options["out_norm"] = out_norm
    count = min(places[-1] + 1, depth)
    if count > 1:
        options["out_indices"] = tuple((k + 1) * depth // count - 1 for k in range(count))
    return options


def _norm(shapes: Shapes) -> str:
    return "ln" if shapes.having("norm.bias") else "rms"


def _has_rope(shapes: Shapes) -> bool:
    return "rope.freqs_cos" in shapes


def _grid(patch_size: int, stride: int) -> int:
    """Side of the grid of patches of an image of the usual size."""
    return (IMG_SIZE - patch_size) // stride + 1


def _tokens(shapes: Shapes) -> tuple[int, int | None]:
    """Number of class tokens, and side of the square grid; None where no table tells.

    Raises:
        Unreadable: If tables are those of no square image.
    """
    tokens = shapes.dim("cls_token", 0) if "cls_token" in shapes else 0
    if tokens not in PLACES:
        raise Unreadable(f"there are {tokens} class tokens")
    if "pos_embed" in shapes:
        # without tokens in the sequence, the table may still have their rows
        rows, counts = shapes.dim("pos_embed", 1), (tokens,) if tokens else tuple(PLACES)
    elif _has_rope(shapes):
        rows, counts = shapes.dim("rope.freqs_cos", 0), (0,)
    else:
        return tokens, None
    for count in counts:
        side = math.isqrt(max(rows - count, 0))
        if side and side**2 + count == rows:
            return max(count, tokens), side
    words = " or ".join(map(str, counts))
    raise Unreadable(f"{rows} positions, {words} of class tokens, are those of no square image")
