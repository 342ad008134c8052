"""What archs of all families have, read from the shapes of their weights.

Shapes do not show everything. These get their defaults, or a release's where what is seen is of
that release alone:

- all families: activations, initialisation, ``force_fp32`` and other matters of precision;
- hierarchical: ``odd_size``, the kind of scan, ``cascade_flip``, ``gate_act``, ``out_act``, and
  the kind of a mixer's norm that has no weights;
- MSVMamba: ``mlp_norm``, and the mixer's ``norm_position``, ``upsample`` and ``full_first``;
- LocalVMamba and LocalVim: ``directions`` other than ``'search'``, and ``output_order``;
- plain: the place of a single class token, ``divide_out``, ``feature``, ``out_type``, the layers
  of several ``out_indices`` (taken at equal distances), and how patches overlap, unless it makes
  the stored grid one of 224 pixels.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from mmvssm.models import MS2D, SS2D, MambaMixer
from mmvssm.models.backbones.local_directions import SEARCH, UNSEARCHED

from .shapes import Shapes, Unreadable, ratio

IMG_SIZE = 224
#: No network of ours has larger patches, and models of huge ones take long to build.
MAX_PATCH = 256

# where mixers of two families differ from SS2D's defaults, as published
_GATED = dict(d_state=16, ssm_ratio=2.0, gate=True, conv_bias=True)
_MIXERS: dict[str, tuple[Callable, dict]] = {
    "vmamba": (SS2D, {}),
    "efficient_vmamba": (SS2D, _GATED),
    "local_vmamba": (SS2D, _GATED),
    "msvmamba": (MS2D, {}),
    "vim": (MambaMixer, {}),
    "local_vim": (MambaMixer, {}),
}
_CONVS = {"conv2d": "d_conv", "conv1d": "d_conv", "small_conv2d": "small_conv"}


def read_patch_size(shapes: Shapes) -> int:
    """Side of the first convolution.

    Raises:
        Unreadable: If there is none, or it is absurd.
    """
    side = shapes.dim("patch_embed.conv1.weight", 2)
    if side > MAX_PATCH:
        raise Unreadable(f"patches of {side} pixels are larger than {MAX_PATCH}")
    return side


def read_mixer(shapes: Shapes, mixers: Sequence[str], family: str) -> dict:
    """The field ``mixer``: arguments that differ from the family's.

    Args:
        shapes: Shapes of a backbone.
        mixers: What the keys of each mixer begin with.
        family: The family.

    Raises:
        Unreadable: If no mixer has such shapes.
    """
    function, changed = _MIXERS[family]
    arguments = inspect.signature(function).parameters.values()
    defaults = {**{argument.name: argument.default for argument in arguments}, **changed}
    first = mixers[0]
    outs = [f"{mixer}out_proj.weight" for mixer in mixers]
    pairs = [(shapes.dim(out, 0), shapes.dim(out, 1)) for out in outs]
    states = shapes.dim(f"{first}A_logs", 1)
    fields: dict[str, Any] = dict(
        ssm_ratio=ratio(pairs, defaults["ssm_ratio"]),
        gate=shapes.dim(f"{first}in_proj.weight", 0) == 2 * pairs[0][1],
        d_conv=1,
        out_norm=_norm_kind(shapes, first),
        scalar_decay=f"{first}dt_projs_weight" not in shapes,
    )
    if fields["scalar_decay"]:
        # here the second axis of A_logs are the heads, as many as the rank
        states = (shapes.dim(f"{first}x_proj_weight", 1) - states) // 2
        # of the two initialisations that such mixers can have, the published one
        fields["ssm_init"] = "v2"
    fields["d_state"] = states
    ranks = [shapes.dim(f"{mixer}x_proj_weight", 1) - 2 * states for mixer in mixers]
    usual = [math.ceil(width / 16) for width, _ in pairs]
    fields["dt_rank"] = None if ranks == usual else ranks[0]
    for conv, field in _CONVS.items():
        if f"{first}{conv}.weight" in shapes:
            fields[field] = shapes.dim(f"{first}{conv}.weight", 2)
            fields["conv_bias"] = f"{first}{conv}.bias" in shapes
    return {name: value for name, value in fields.items() if value != defaults.get(name, value)}


def _norm_kind(shapes: Shapes, mixer: str) -> str:
    if f"{mixer}out_norm.0.weight" in shapes:
        return "cnorm"
    norm = shapes.shapes.get(f"{mixer}out_norm.weight")
    if norm is None:
        return "none"
    return "layernorm" if len(norm) == 1 else "dwconv3"


def is_search(shapes: Shapes) -> bool:
    """Whether the network is that of the search for directions."""
    return shapes.any(r"\.merge\.weights$")


def read_directions(shapes: Shapes, mixers: Sequence[str]) -> str | None:
    """The field ``directions``: ``'search'``, or None for the default.

    Raises:
        Unreadable: If there are more or fewer than the default has.
    """
    if is_search(shapes):
        return SEARCH
    counts = {shapes.dim(f"{mixer}x_proj_weight", 0) for mixer in mixers}
    if len(counts) == 1 and counts != {len(UNSEARCHED)}:
        raise Unreadable(
            f"each layer scans in {counts.pop()} directions, which are not stored with weights"
        )
    return None
