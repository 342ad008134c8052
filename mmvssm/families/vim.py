"""Declaration of Vim."""

from collections.abc import Collection
from functools import partial
from typing import Any

from torch import nn

from mmvssm.models.backbones.vim import Vim

from . import layers
from .detectron2_heads import DETECTRON2_HEADS, DETECTRON2_KEY
from .family import Family, Released, ScanCost, register_family
from .pyramids import FEATURE2PYRAMID, SIMPLE_FEATURE_PYRAMID
from .rules import Rename, Rewrite

_HUB = "https://huggingface.co/hustvl/"


def _from_detector(key: str) -> str:
    return key.removeprefix("net.")


def _to_detector(key: str, ours: str, keys: Collection[str]) -> str:
    """Prefix the keys of a detector's backbone with ``net.``; its pyramid identifies it."""
    is_detector = any(name.startswith("neck.levels.") for name in keys)
    return f"net.{key}" if is_detector and not ours.startswith("neck.") else key


def _dense_options(backbone: nn.Module, content: str) -> dict[str, Any]:
    options = dict(layers.map_options(backbone, content), out_norm=False)
    return dict(options, drop_cls_token=True) if backbone.positions.cls_place != "none" else options


register_family(
    Family(
        name="vim",
        backbone=Vim,
        # the backward scan's parameters follow those of the forward scan
        trunk=(
            Rewrite(_from_detector, _to_detector),
            *layers.EMBEDDINGS,
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
        ),
        tasks={
            "classification": layers.CLASSIFICATION,
            # dense models have no output norms
            "dense": (
                *layers.DENSE,
                *SIMPLE_FEATURE_PYRAMID,
                *FEATURE2PYRAMID,
                Rename(None, "norm{k}."),
            ),
        },
        linear=layers.LINEAR,
        container=("model",),
        # segmentors are saved by mmsegmentation, detectors by Detectron2
        dense_container=("state_dict", "model"),
        count_parts=layers.count_parts,
        detector=DETECTRON2_HEADS,
        detector_key=DETECTRON2_KEY,
        sign=rf"{layers.MIXER}(A_b_log|D_b|(conv1d|x_proj|dt_proj)_b)(\.|$)",
        scan=rf"{layers.MIXER}A_logs?$",
        variants=(dict(norm="ln"),),
        # the first Vim had its class token before all patches and summed the scans
        read_options=partial(
            layers.read_options, rope_options=dict(divide_out=False, cls_token="head")
        ),
        dense_options=_dense_options,
        released=tuple(
            Released(f"vim-{config}_in1k", f"{_HUB}{page}/resolve/main/{file}", f"{_HUB}{page}")
            for config, page, file in (
                ("tiny_8xb128", "Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth"),
                ("small_8xb64", "Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth"),
                ("base_8xb64", "Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth"),
                ("tiny-stride8_8xb128", "Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth"),
                ("small-stride8_8xb128", "Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth"),
            )
        ),
        cost=ScanCost(per_element=2),
    )
)
