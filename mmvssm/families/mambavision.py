"""Declaration of MambaVision."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mmvssm.models.backbones.mambavision import MambaVision

from . import stages
from .family import Family, Released, register_family
from .rules import Rename

_URL = "https://huggingface.co/nvidia"
_IN1K = "8xb128_in1k"
_IN21K = "in21k-pre_8xb128_in1k"
_COCO = "fpn_ms-3x_coco"
_ADE = "4xb4-160k_ade20k-512x512"
_ADE_640 = "4xb4-160k_ade20k-640x640"
#: Repository and file by config.
_RELEASED = {
    f"mambavision-tiny_{_IN1K}": "MambaVision-T-1K/mambavision_tiny_1k.pth.tar",
    f"mambavision-tiny2_{_IN1K}": "MambaVision-T2-1K/mambavision_tiny2_1k.pth.tar",
    f"mambavision-small_{_IN1K}": "MambaVision-S-1K/mambavision_small_1k.pth.tar",
    f"mambavision-base_{_IN1K}": "MambaVision-B-1K/mambavision_base_1k.pth.tar",
    f"mambavision-large_{_IN1K}": "MambaVision-L-1K/mambavision_large_1k.pth.tar",
    f"mambavision-large2_{_IN1K}": "MambaVision-L2-1K/mambavision_large2_1k.pth.tar",
    f"mambavision-base_{_IN21K}": "MambaVision-B-21K/mambavision_base_21k.pth.tar",
    f"mambavision-large_{_IN21K}": "MambaVision-L-21K/mambavision_large_21k.pth.tar",
    f"mambavision-large2-512_{_IN21K}": (
        "MambaVision-L2-512-21K/mambavision_L2_21k_240m_512.pth.tar"
    ),
    f"mambavision-large3-256_{_IN21K}": (
        "MambaVision-L3-256-21K/mambavision_L3_21k_740m_256.pth.tar"
    ),
    f"mambavision-large3-512_{_IN21K}": (
        "MambaVision-L3-512-21K/mambavision_L3_21k_740m_512.pth.tar"
    ),
    **{
        f"cascade-mask-rcnn_mambavision-{arch}_{_COCO}": f"{name}/{name}.pth"
        for arch in ("tiny", "base")
        for name in (f"cascade_mask_rcnn_mamba_vision_{arch}_3x_coco",)
    },
    **{
        f"mambavision-{arch}_upernet_{_ADE}": f"{name}/{name}.pth"
        for arch in ("tiny", "small", "base")
        for name in (f"mamba_vision_160k_ade20k-512x512_{arch}",)
    },
    f"mambavision-large3-512_upernet_{_ADE_640}": (
        "mamba_vision_160k_ade20k-640x640_l3_21k/mamba_vision_160k_ade20k-640x640_l3_21k.pth"
    ),
}

#: Number of parts in which files store the tensors of our scans.
_PARTS = {"conv1d.weight": 2, "x_proj_weight": 1, "dt_projs_weight": 1, "dt_projs_bias": 1}


def _released(config: str, path: str) -> Released:
    repository, file = path.split("/")
    page = f"{_URL}/{repository}"
    return Released(config, f"{page}/resolve/main/{file}", page)


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
            # classifiers return the map of the last stage, after a batch norm
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
        released=tuple(_released(config, path) for config, path in _RELEASED.items()),
        # the epoch was chosen by the average, but the project's code tests the online weights
        published="online",
        licence="for non-commercial use only (CC-BY-NC-SA 4.0)",
    )
)
