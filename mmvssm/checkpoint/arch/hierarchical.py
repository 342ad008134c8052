"""Fields and options of hierarchical backbones, read from the shapes of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmvssm.models.backbones.local_directions import SEARCH

from .fields import IMG_SIZE, is_search, read_directions, read_mixer, read_patch_size
from .shapes import Shapes, Unreadable, ratio

#: No network of ours has more stages, and models of very many take long to build.
MAX_STAGES = 8
#: What MSVMamba's third version has besides its stem and downsampling.
MSVMAMBA_V3 = dict(norm_position="after_sum", upsample="nearest", full_first=True, force_fp32=False)
_NORM_OF_TRUNK = r"^(patch_embed|stages\.\d+\.(downsample|blocks\.\d+))\.norm[12]?\."


def outline(shapes: Shapes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Widths and depths of the stages.

    Raises:
        Unreadable: If there is no stem, or far too many stages.
    """
    last = "conv2" if _stem(shapes) == "conv" else "conv1"
    dims = [shapes.dim(f"patch_embed.{last}.weight", 0)]
    while layer := _downsample_layer(shapes, len(dims) - 1):
        dims.append(shapes.dim(layer, 0))
        if len(dims) > MAX_STAGES:
            raise Unreadable(f"there are more than {MAX_STAGES} stages")
    stages = [block.split(".")[1] for block in shapes.blocks]
    return tuple(dims), tuple(stages.count(str(stage)) for stage in range(len(dims)))


def outline_of(arch: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Widths and depths of the stages, from the complete fields of an arch."""
    dims, depths = arch["embed_dims"], tuple(arch["depths"])
    if isinstance(dims, int):
        dims = [dims * 2**stage for stage in range(len(depths))]
    return tuple(dims), depths


def read_fields(shapes: Shapes, family: str) -> dict:
    """Fields of the arch, those of all hierarchical families.

    Args:
        shapes: Shapes of a backbone.
        family: The family.

    Raises:
        Unreadable: If no network of the family has such shapes.
    """
    dims, depths = outline(shapes)
    doubled = all(dim == dims[0] * 2**stage for stage, dim in enumerate(dims))
    stem, kernel = _stem(shapes), read_patch_size(shapes)
    fields = dict(
        embed_dims=dims[0] if doubled else dims,
        depths=depths,
        stem=stem,
        patch_size=2 * (kernel - 1) if stem == "conv" else kernel,
        patch_norm=shapes.any(r"^patch_embed\.norm1\."),
        norm="bn" if shapes.any(f"{_NORM_OF_TRUNK}running_mean$") else "ln",
        pos_embed="pos_embed" in shapes,
        **_mlp(shapes),
        **_inverted_residuals(shapes),
    )
    if layer := _downsample_layer(shapes, 0):
        is_merge = layer.endswith("reduction.weight")
        fields["downsample"] = "patch_merge" if is_merge else f"conv{shapes.dim(layer, 2)}"
    inside = "mixer."
    if family == "efficient_vmamba":
        inside = "mixer.ss2d."
        fields["stage_types"] = _stage_types(shapes, len(dims))
    mixers = [block + inside for block in shapes.having(f"{inside}A_logs")]
    if mixers:
        fields["mixer"] = read_mixer(shapes, mixers, family)
    elif family == "vmamba":
        fields["mixer"] = None
    if family == "local_vmamba":
        fields["directions"] = read_directions(shapes, mixers)
    if family == "msvmamba" and mixers and (stem, fields.get("downsample")) == ("conv", "conv3"):
        fields["mlp_norm"] = "post"
        fields["mixer"].update(MSVMAMBA_V3)
    return fields


def _stem(shapes: Shapes) -> str:
    return "conv" if "patch_embed.conv2.weight" in shapes else "patch"


def _downsample_layer(shapes: Shapes, stage: int) -> str | None:
    names = (f"stages.{stage}.downsample.{name}.weight" for name in ("reduction", "conv"))
    return next((name for name in names if name in shapes), None)


def _mlp(shapes: Shapes) -> dict:
    blocks = shapes.having("mlp.fc2.weight")
    if not blocks:
        return dict(mlp_ratio=0.0)
    layers = [f"{block}mlp.fc2.weight" for block in blocks]
    pairs = [(shapes.dim(layer, 0), shapes.dim(layer, 1)) for layer in layers]
    gated = shapes.dim(f"{blocks[0]}mlp.fc1.weight", 0) == 2 * pairs[0][1]
    return dict(mlp_ratio=ratio(pairs, 4.0), gated_mlp=gated)


def _inverted_residuals(shapes: Shapes) -> dict:
    blocks = shapes.having("expand.weight")
    if not blocks:
        return {}

    def pairs(layer: str) -> list[tuple[int, int]]:
        names = [f"{block}{layer}.weight" for block in blocks]
        return [(shapes.dim(name, 1), shapes.dim(name, 0)) for name in names]

    return dict(expand_ratio=ratio(pairs("expand"), 4.0), se_ratio=ratio(pairs("se.fc1"), 0.125))


def _stage_types(shapes: Shapes, num_stages: int) -> list[str] | None:
    """None for the default, scans in the first two stages; stages without blocks are as there."""
    usual = [stage > 1 for stage in range(num_stages)]
    residual = list(usual)
    for stage in range(num_stages):
        if shapes.any(rf"^stages\.{stage}\.blocks\."):
            residual[stage] = shapes.any(rf"^stages\.{stage}\.blocks\.\d+\.expand\.")
    if residual == usual:
        return None
    return ["inverted_residual" if kind else "es2d" for kind in residual]


def read_options(shapes: Shapes, arch: Mapping[str, Any], family: str) -> dict:
    """Constructor arguments that shapes show, where they differ from defaults and arch.

    Args:
        shapes: Shapes of a backbone.
        arch: Complete fields of its arch.
        family: The family.

    Raises:
        Unreadable: If there is no stem.
    """
    options: dict[str, Any] = {}
    if (channels := shapes.dim("patch_embed.conv1.weight", 1)) != 3:
        options["in_channels"] = channels
    stages = tuple(range(len(arch["depths"])))
    norms = tuple(i for i in shapes.numbers(r"norm(\d{1,3})\.") if i in stages)
    if not norms:
        options["out_norm"] = False
    if (norms or stages) != (0, 1, 2, 3):
        options["out_indices"] = norms or stages
    if is_search(shapes) and arch.get("directions", SEARCH) != SEARCH:
        options["directions"] = SEARCH
    if family == "vmamba" and "pos_embed" in shapes:
        sides = tuple(shapes.dim("pos_embed", axis) * arch["patch_size"] for axis in (2, 3))
        if sides != (IMG_SIZE, IMG_SIZE):
            options["img_size"] = sides[0] if sides[0] == sides[1] else sides
    return options
