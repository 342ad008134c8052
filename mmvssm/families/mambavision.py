"""MambaVision."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mmvssm.models.backbones.mambavision import MambaVision

from . import stages
from .family import Family, register_family
from .rules import Rename

#: In how many parts files hold the tensors of our scans.
_PARTS = {"conv1d.weight": 2, "x_proj_weight": 1, "dt_projs_weight": 1, "dt_projs_bias": 1}


def _count_parts(key: str, tensors: Mapping[str, Tensor]) -> int | None:
    return _PARTS.get(key.partition(".mixer.")[2])


def _read_options(shapes: Mapping[str, Sequence[int]], arch: Mapping[str, Any]) -> dict[str, Any]:
    options = stages.read_options(shapes, arch)
    if any(key.startswith("norm") and key.endswith(".running_mean") for key in shapes):
        options["out_norm"] = "bn"
    return options


register_family(
    Family(
        name="mambavision",
        backbone=MambaVision,
        trunk=(
            Rename("patch_embed.conv_down.0.", "patch_embed.conv1."),
            Rename("patch_embed.conv_down.1.", "patch_embed.norm1."),
            Rename("patch_embed.conv_down.3.", "patch_embed.conv2."),
            Rename("patch_embed.conv_down.4.", "patch_embed.norm2."),
            Rename("levels.", "stages."),
            Rename(".downsample.reduction.0.", ".downsample.conv."),
            Rename(".blocks.{j}.gamma", ".blocks.{j}.layer_scale.weight"),
            Rename(".blocks.{j}.gamma_{i}", ".blocks.{j}.layer_scale{i}.weight"),
            Rename(".mixer.A_log", ".mixer.A_logs"),
            Rename(".mixer.D", ".mixer.Ds"),
            Rename(".mixer.conv1d_x.weight", ".mixer.conv1d.weight@0"),
            Rename(".mixer.conv1d_z.weight", ".mixer.conv1d.weight@1"),
            Rename(".mixer.x_proj.weight", ".mixer.x_proj_weight@0"),
            Rename(".mixer.dt_proj.{parameter}", ".mixer.dt_projs_{parameter}@0"),
        ),
        tasks={
            # classifiers return the map of the last stage, behind a batch norm
            "classification": (
                Rename("outnorm{i}.", None),
                Rename(None, "norm{i}."),
                Rename("norm.", "norm3."),
                Rename("head.{parameter}", "head.fc.{parameter}"),
            ),
            "dense": (
                Rename("outnorm{i}.", "norm{i}."),
                Rename("norm.", None),
                Rename("head.", None),
            ),
        },
        count_parts=_count_parts,
        sign=r"^(levels|stages)\.\d+\.blocks\.\d+\.(conv[12]|mixer\.(qkv|proj|conv1d(_[xz])?))\.",
        read_options=_read_options,
    )
)
