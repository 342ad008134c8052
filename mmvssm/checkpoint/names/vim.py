"""Key names of Vim's and LocalVim's checkpoints, in terms of ours."""

from collections.abc import Collection, Mapping

from torch import Tensor

from .necks import FEATURE2PYRAMID, SIMPLE_FEATURE_PYRAMID
from .rules import Rename, Rewrite


def _from_detector(key: str) -> str:
    return key.removeprefix("net.")


def _to_detector(key: str, ours: str, keys: Collection[str]) -> str:
    """Detectors are known by their pyramid, which stands beside ``net``."""
    is_detector = any(name.startswith("neck.levels.") for name in keys)
    return f"net.{key}" if is_detector and not ours.startswith("neck.") else key


_PLAIN = (
    Rename("patch_embed.proj.", "patch_embed.conv1."),
    Rename("cls_token_head", "cls_token@0"),
    Rename("cls_token_tail", "cls_token@1"),
)

# The backward scan's parameters stand behind those of the forward scan.
VIM_TRUNK = (
    Rewrite(_from_detector, _to_detector),
    *_PLAIN,
    Rename(".A_log", ".A_logs@0"),
    Rename(".A_b_log", ".A_logs@1"),
    Rename(".D", ".Ds@0"),
    Rename(".D_b", ".Ds@1"),
    Rename(".conv1d.{parameter}", ".conv1d.{parameter}@0"),
    Rename(".conv1d_b.{parameter}", ".conv1d.{parameter}@1"),
    Rename(".x_proj.weight", ".x_proj_weight@0"),
    Rename(".x_proj_b.weight", ".x_proj_weight@1"),
    Rename(".dt_proj.{parameter}", ".dt_projs_{parameter}@0"),
    Rename(".dt_proj_b.{parameter}", ".dt_projs_{parameter}@1"),
)

LOCAL_VIM_TRUNK = (
    *_PLAIN,
    Rename(".A_log_{i}", ".A_logs@{i}"),
    Rename(".D_{i}", ".Ds@{i}"),
    Rename(".conv1d_{i}.{parameter}", ".conv1d.{parameter}@{i}"),
    Rename(".x_proj_{i}.weight", ".x_proj_weight@{i}"),
    Rename(".dt_proj_{i}.{parameter}", ".dt_projs_{parameter}@{i}"),
    Rename(".mixer.multi_scan.", ".mixer.merge."),
    Rename(".mixer.attn.", ".mixer.merge.attn."),
)

#: Tensors of our mixers that files hold in one part per scan.
_PER_SCAN = (
    *("A_logs", "Ds", "conv1d.weight", "conv1d.bias"),
    *("x_proj_weight", "dt_projs_weight", "dt_projs_bias"),
)


def count_parts(key: str, tensors: Mapping[str, Tensor]) -> int | None:
    """Number of parts in which files hold a tensor of ours; None for one that they hold whole.

    Args:
        key: Its name.
        tensors: All tensors of ours by their names.

    Raises:
        ValueError: If the number of scans cannot be told.
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
PLAIN_CLASSIFICATION = (
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
    """Rules for the norms, head and pyramids of a detector's or segmentor's backbone.

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


# Vim's wrappers have no norms of outputs, LocalVim's no pyramids inside.
VIM_DENSE = (*plain_dense(), Rename(None, "norm{k}."))
LOCAL_VIM_DENSE = (*plain_dense(pyramid=()), Rename(None, "neck.levels."))

PLAIN_LINEAR = r"\.(in_proj|out_proj|global_reduce|channel_select|fc)\.weight$"
