"""Key names and options of Vim and LocalVim, whose layers have one width."""

import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from mmvssm.models.layers.tokens import CLASS_TOKENS

from .key_map import POS_GRID
from .rules import Rename
from .stages import IMG_SIZE, directions, in_channels

#: Position of class tokens by their number; shapes do not reveal the position of a single one.
PLACES = {0: "none", 1: "middle", 2: "double"}

EMBEDDINGS = (
    Rename("patch_embed.proj.", "patch_embed.conv1."),
    Rename("cls_token_head", "cls_token@0"),
    Rename("cls_token_tail", "cls_token@1"),
)

#: Regular expression for the prefix of a mixer's names.
MIXER = r"layers\.\d+\.mixer\."

#: Tensors of our mixers that files store in one part per scan.
_PER_SCAN = (
    *("A_logs", "Ds", "conv1d.weight", "conv1d.bias"),
    *("x_proj_weight", "dt_projs_weight", "dt_projs_bias"),
)


def count_parts(key: str, tensors: Mapping[str, Tensor]) -> int | None:
    """Return the number of parts in which files store one of our tensors; None if unsplit."""
    if key == "cls_token":
        return len(tensors[key]) if len(tensors[key]) > 1 else None
    layer, mixer, name = key.partition(".mixer.")
    if name not in _PER_SCAN:
        return None
    scans = tensors.get(f"{layer}{mixer}x_proj_weight")
    if scans is None or scans.dim() != 3:
        raise ValueError(
            f"{key!r} cannot be split: its layer has no x_proj_weight with three axes, the first of"
            " which gives the number of scans"
        )
    return len(scans)


# classifiers return one output
CLASSIFICATION = (
    Rename("outnorm_{k}.", None),
    Rename(None, "norm{k}."),
    Rename("norm_f.", "norm0."),
    Rename("head.{parameter}", "head.fc.{parameter}"),
)


DENSE = (
    Rename("head.", None),
    Rename("outnorm_{k}.", "norm{k}."),
    Rename("norm_f.", None),
)

LINEAR = r"\.(in_proj|out_proj|global_reduce|channel_select|fc)\.weight$"


def map_options(backbone: nn.Module, content: str) -> dict[str, Any]:
    """Return the options for feature maps as outputs, of four layers for segmentors."""
    options: dict[str, Any] = dict(out_type="featmap")
    if content == "segmentor":
        options["out_indices"] = tuple(backbone.num_layers * k // 4 - 1 for k in range(1, 5))
    return options


def read_options(
    shapes: Mapping[str, Sequence[int]],
    arch: Mapping[str, Any],
    rope_options: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Infer options from shapes; return those that differ from defaults and arch.

    Shapes reveal neither the position of a single class token nor the layers of several outputs,
    which are assumed to be evenly spaced.

    Args:
        shapes: Shapes by our keys.
        arch: Fields of the arch.
        rope_options: Further options of networks with a rotary embedding.

    Raises:
        ValueError: If the numbers of class tokens and positions fit no network.
    """
    options = in_channels(shapes)
    num_class, grid = _tokens(shapes)
    norms = sorted(int(key[4]) for key in shapes if re.match(r"norm\d\.weight", key))
    norm = "ln" if any(re.match(r"layers\.\d+\.norm\.bias", key) for key in shapes) else "rms"
    rope, place, depth = "rope.freqs_cos" in shapes, arch["cls_token"], arch["num_layers"]
    if num_class == 0 and rope == arch["rope"] and "pos_embed" in shapes and len(norms) != 1:
        # dense models are saved without the rows of class tokens, and look like those of 'none'
        num_class = CLASS_TOKENS[place]
    if CLASS_TOKENS[place] != num_class:
        place = PLACES[num_class]
    if rope != arch["rope"]:
        options["rope"] = rope
        if rope and rope_options:
            options |= {k: v for k, v in rope_options.items() if k != "cls_token"}
            place = rope_options["cls_token"] if num_class == 1 else PLACES[num_class]
    if place != arch["cls_token"]:
        options["cls_token"] = place
    if num_class and "cls_token" not in shapes:
        options["drop_cls_token"] = True
    if norm != arch["norm"]:
        options["norm"] = norm
    options |= directions(shapes, arch)
    stride = arch["stride"] or arch["patch_size"]
    side = (IMG_SIZE - arch["patch_size"]) // stride + 1
    if grid not in (None, (side, side)):
        height, width = ((count - 1) * stride + arch["patch_size"] for count in grid)
        options["img_size"] = height if height == width else (height, width)
    if not norms:
        return {**options, "out_norm": False}
    if (out_norm := "ln" if f"norm{norms[0]}.bias" in shapes else "rms") != norm:
        options["out_norm"] = out_norm
    if (count := min(norms[-1] + 1, depth)) > 1:
        options["out_indices"] = tuple((k + 1) * depth // count - 1 for k in range(count))
    return options


def _tokens(shapes: Mapping[str, Sequence[int]]) -> tuple[int, tuple[int, int] | None]:
    """Return the number of class tokens and the grid, or None if no table reveals it.

    If a file does not store the grid of a table, a square grid is assumed.
    """
    tokens = next(iter(shapes.get("cls_token", (0,))), -1)
    if tokens not in PLACES:
        raise ValueError(f"the number of class tokens must be 0, 1 or 2, got {tokens}")
    if len(table := shapes.get("pos_embed", ())) == 3:
        # even without tokens in the sequence, the table may have their rows
        rows, counts = table[1], (tokens,) if tokens else tuple(PLACES)
        if len(said := shapes.get(POS_GRID, ())) == 3:
            if (count := rows - math.prod(said[:2])) in counts:
                return max(count, tokens), (said[0], said[1])
            raise ValueError(f"{rows} positions do not fit a grid of {said[0]}x{said[1]} patches")
    elif len(table := shapes.get("rope.freqs_cos", ())) == 2:
        rows, counts = table[0], (0,)
    else:
        return tokens, None
    for count in counts:
        side = math.isqrt(max(rows - count, 0))
        if side and side**2 + count == rows:
            return max(count, tokens), (side, side)
    counts = " or ".join(map(str, counts))
    raise ValueError(
        f"{rows} positions, {counts} of them of class tokens, do not fit a square image"
    )
