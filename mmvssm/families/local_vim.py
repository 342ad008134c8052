"""Declaration of LocalVim."""

from typing import Any

from torch import nn

from mmvssm.models.backbones.local_vim import LocalVim

from . import layers
from .family import Family, Released, ScanCost, register_family
from .pyramids import LOCAL_VIM_DETECTOR
from .rules import Rename

_URL = "https://github.com/hunto/LocalMamba/releases/download/v1.0.0/"


def _dense_options(backbone: nn.Module, content: str) -> dict[str, Any]:
    return dict(layers.map_options(backbone, content), out_norm="ln", feature="mixer")


register_family(
    Family(
        name="local_vim",
        backbone=LocalVim,
        trunk=(
            *layers.EMBEDDINGS,
            Rename(".A_log_{i}", ".A_logs@{i}"),
            Rename(".D_{i}", ".Ds@{i}"),
            Rename(".conv1d_{i}.{parameter}", ".conv1d.{parameter}@{i}"),
            Rename(".x_proj_{i}.weight", ".x_proj_weight@{i}"),
            Rename(".dt_proj_{i}.{parameter}", ".dt_projs_{parameter}@{i}"),
            Rename(".mixer.multi_scan.", ".mixer.merge."),
            Rename(".mixer.attn.", ".mixer.merge.attn."),
        ),
        tasks={
            "classification": layers.CLASSIFICATION,
            # backbones contain no pyramids
            "dense": (*layers.DENSE, Rename(None, "neck.levels.")),
        },
        linear=layers.LINEAR,
        count_parts=layers.count_parts,
        detector=LOCAL_VIM_DETECTOR,
        detector_key=("neck.fpn1.0.weight", "neck.levels.x4.deconv1.weight"),
        read_options=layers.read_options,
        sign=rf"{layers.MIXER}((A_log|D|conv1d|x_proj|dt_proj)_\d+(\.|$)|(attn|multi_scan|merge)\.)",
        variants=(dict(norm="ln"), dict(directions="search")),
        dense_options=_dense_options,
        released=(
            *(
                Released(
                    f"local-vim-{arch}_8xb128_in1k",
                    f"{_URL}{file}.ckpt",
                    logs=(f"{_URL}log_{file}.txt",),
                )
                for arch, file in (
                    ("tiny", "local_vim_tiny"),
                    ("tiny-mid-cls", "local_vim_tiny_middle_cls_token"),
                )
            ),
        ),
        # LocalMamba's code counts five per state, and one convolution and projection for all scans
        cost=ScanCost(per_state=5, per_element=2, once=True, precision=5e-4),
    )
)
