"""Key names and options that Vim and LocalVim share: layers of one width."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .pyramids import FEATURE2PYRAMID, SIMPLE_FEATURE_PYRAMID
from .rules import Rename

EMBEDDINGS = (
    Rename("patch_embed.proj.", "patch_embed.conv1."),
    Rename("cls_token_head", "cls_token@0"),
    Rename("cls_token_tail", "cls_token@1"),
)

#: Beginning of a mixer's names.
MIXER = r"layers\.\d+\.mixer\."

#: Tensors of our mixers that files hold in one part per scan.
_PER_SCAN = (
    *("A_logs", "Ds", "conv1d.weight", "conv1d.bias"),
    *("x_proj_weight", "dt_projs_weight", "dt_projs_bias"),
)


def count_parts(key: str, tensors: Mapping[str, Tensor]) -> int | None:
    """Count the parts in which files hold a tensor; None for one that they do not divide.

    Args:
        key: Our name.
        tensors: All our tensors by name; a layer's ``x_proj_weight`` is ``(K, R + 2 * N, D)``.

    Raises:
        ValueError: If the number of scans K cannot be told.
    """
    if key == "cls_token":
        return len(tensors[key]) if len(tensors[key]) > 1 else None
    layer, mixer, name = key.partition(".mixer.")
    if name not in _PER_SCAN:
        return None
    scans = tensors.get(f"{layer}{mixer}x_proj_weight")
    if scans is None or scans.dim() != 3:
        raise ValueError(
            f"{key!r} cannot be split: its layer has no x_proj_weight of three axes, whose first"
            " counts the scans"
        )
    return len(scans)


# classifiers return one output
CLASSIFICATION = (
    Rename("outnorm_{k}.", None),
    Rename(None, "norm{k}."),
    Rename("norm_f.", "norm0."),
    Rename("head.{parameter}", "head.fc.{parameter}"),
)


def plain_dense(
    final_norm: str | None = None,
    out_norms: bool = True,
    pyramid: tuple[Rename, ...] = FEATURE2PYRAMID,
) -> tuple[Rename, ...]:
    """Make rules for the norms, head and pyramids of a detector's or segmentor's backbone.

    Args:
        final_norm: The norm that has the weights of the classifier's last; None for none.
        out_norms: Whether outputs pass norms of their own.
        pyramid: Rules for the names of the segmentor's pyramid.
    """
    return (
        Rename("head.", None),
        Rename("outnorm_{k}.", "norm{k}." if out_norms else None),
        Rename("norm_f.", None if final_norm is None else f"{final_norm}."),
        *SIMPLE_FEATURE_PYRAMID,
        *pyramid,
    )


LINEAR = r"\.(in_proj|out_proj|global_reduce|channel_select|fc)\.weight$"


def map_options(backbone: nn.Module, content: str) -> dict[str, Any]:
    """Return the options that make outputs maps; segmentors take those of four layers."""
    options: dict[str, Any] = dict(out_type="featmap")
    if content == "segmentor":
        options["out_indices"] = tuple(backbone.num_layers * k // 4 - 1 for k in range(1, 5))
    return options
