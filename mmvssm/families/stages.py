"""Key names that VMamba's checkpoints share with those of families derived from its code.

Names are mapped from the first release to the project's current code, and from there to ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmvssm.models.backbones.local_directions import SEARCH

from .rules import Rename, has, lacks

#: Default side of images.
IMG_SIZE = 224

#: Names of the first release (January 2024), and those of the current code.
FIRST_RELEASE = (
    Rename("patch_embed.proj.", "patch_embed.0."),
    Rename("patch_embed.norm.", "patch_embed.2."),
    Rename(".blocks.{j}.ln_1.", ".blocks.{j}.norm."),
    Rename(".self_attention.", ".op."),
    Rename("norm.", "classifier.norm."),
    Rename("head.{parameter}", "classifier.head.{parameter}"),
)

STEM_AND_STAGES = (
    Rename("patch_embed.0.", "patch_embed.conv1."),
    Rename("patch_embed.2.", "patch_embed.norm1."),
    Rename("patch_embed.5.", "patch_embed.conv2."),
    Rename("patch_embed.7.", "patch_embed.norm2."),
    Rename("layers.", "stages."),
    Rename(".blocks.{j}.norm.", ".blocks.{j}.norm1."),
    Rename(".downsample.1.", ".downsample.conv."),
    # the norm after a convolution; that of patch merging has the same name in both
    Rename(".downsample.3.", ".downsample.norm.", has(".downsample.", "conv.weight")),
)

SS2D_TRUNK = (
    *STEM_AND_STAGES,
    # scalar-decay models, which have no step projection
    Rename(".op.conv2d.1.", ".op.conv2d.", lacks(".mixer.", "dt_projs_weight")),
    # depthwise convolution as out-norm, also stored without the 1; it has no bias
    Rename(".op.out_norm.1.weight", ".op.out_norm.weight", lacks(".out_norm.", "bias")),
    Rename(".op.out_norm.2.", ".op.out_norm.1."),  # layer norm and convolution
    Rename(".op.", ".mixer."),
)

TASKS = {
    # classifiers return the map of the last stage
    "classification": (
        Rename("outnorm{i}.", None),
        Rename(None, "norm{i}."),
        Rename("classifier.norm.", "norm3."),
        Rename("classifier.head.", "head.fc."),
    ),
    "dense": (
        Rename("outnorm{i}.", "norm{i}."),
        Rename("classifier.", None),
    ),
}

SS2D_LINEAR = r"\.(in_proj|out_proj|fc1|fc2|reduction|fc)\.weight$"

#: Regular expression for the prefix of a mixer's names in the first release, current code and ours.
MIXER = r"\.blocks\.\d+\.(op|self_attention|mixer)\."


def read_options(shapes: Mapping[str, Sequence[int]], arch: Mapping[str, Any]) -> dict[str, Any]:
    """Infer options from shapes by our keys; return those that differ from defaults and arch."""
    options = in_channels(shapes)
    stages = tuple(range(len(arch["depths"])))
    norms = tuple(i for i in stages if any(key.startswith(f"norm{i}.") for key in shapes))
    if not norms:
        options["out_norm"] = False
    if (norms or stages) != (0, 1, 2, 3):
        options["out_indices"] = norms or stages
    options |= directions(shapes, arch)
    table = shapes.get("pos_embed", ())
    if arch.get("pos_embed") and len(table) == 4:
        height, width = (side * arch["patch_size"] for side in table[2:])
        if (height, width) != (IMG_SIZE, IMG_SIZE):
            options["img_size"] = height if height == width else (height, width)
    return options


def in_channels(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return the option ``in_channels`` if images do not have three channels."""
    stem = shapes.get("patch_embed.conv1.weight", ())
    return dict(in_channels=stem[1]) if len(stem) == 4 and stem[1] != 3 else {}


def directions(shapes: Mapping[str, Sequence[int]], arch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the option ``directions`` if the weights belong to a search network."""
    is_search = any(key.endswith(".merge.weights") for key in shapes)
    return dict(directions=SEARCH) if is_search and arch.get("directions", SEARCH) != SEARCH else {}
