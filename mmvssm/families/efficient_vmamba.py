"""EfficientVMamba; many of its key names are VMamba's, including those of its first release."""

import re
from collections.abc import Collection

from mmvssm.models.backbones.efficient_vmamba import EfficientVMamba

from .family import Family, Released, register_family
from .rules import Rename, Rewrite, has
from .stages import FIRST_RELEASE, STEM_AND_STAGES, TASKS, read_options

# Stages of inverted residuals are flat sequences in the original: a permutation (item 0), the
# blocks, another permutation and, except in the last stage, the downsampling.


def _from_flat(key: str) -> str:
    key = re.sub(r"^layers\.(\d+)\.\d+\.(reduction|norm|1|3)\.", r"layers.\1.downsample.\2.", key)
    match = re.match(r"layers\.(\d+)\.(\d+)\.(?:conv_pw|conv_dw|se|conv_pw2)\.", key)
    if match is None:
        return key
    stage, item = match.groups()
    return f"layers.{stage}.blocks.{int(item) - 1}.{key[match.end(2) + 1 :]}"


def _to_flat(key: str, ours: str, keys: Collection[str]) -> str:
    match = re.match(r"layers\.(\d+)\.(?:blocks\.(\d+)|downsample)\.", key)
    if match is None:
        return key
    stage, block = match.groups()
    blocks = [name for name in keys if _is_expansion(name, stage)]
    if not blocks:
        return key
    item = len(blocks) + 2 if block is None else int(block) + 1
    return f"layers.{stage}.{item}.{key[match.end() :]}"


def _is_expansion(name: str, stage: str) -> bool:
    """Return whether a key is the expansion weight of an inverted residual of the stage."""
    return name.startswith(f"stages.{stage}.blocks.") and name.endswith(".expand.weight")


_LOGS = "https://github.com/TerryPei/EfficientVMamba/releases/download/v1.0.0/log_efficient_vmamba"
_inverted_residual = has(".blocks.{j}.", "expand.weight")

_TRUNK = (
    Rewrite(_from_flat, _to_flat),
    *STEM_AND_STAGES,
    Rename(".blocks.{j}.conv_pw.0.", ".blocks.{j}.expand."),
    Rename(".blocks.{j}.conv_pw.1.", ".blocks.{j}.norm1.", _inverted_residual),
    Rename(".blocks.{j}.conv_dw.0.", ".blocks.{j}.dwconv."),
    Rename(".blocks.{j}.conv_dw.1.", ".blocks.{j}.norm2.", _inverted_residual),
    Rename(".blocks.{j}.se.conv_reduce.", ".blocks.{j}.se.fc1."),
    Rename(".blocks.{j}.se.conv_expand.", ".blocks.{j}.se.fc2."),
    Rename(".blocks.{j}.conv_pw2.0.", ".blocks.{j}.project."),
    Rename(".blocks.{j}.conv_pw2.1.", ".blocks.{j}.norm3."),
    Rename(".blocks.{j}.op.", ".blocks.{j}.mixer.ss2d."),
    Rename(".blocks.{j}.conv_branch.0.", ".blocks.{j}.mixer.conv_branch.dwconv."),
    Rename(".blocks.{j}.conv_branch.1.", ".blocks.{j}.mixer.conv_branch.norm."),
    Rename(".blocks.{j}.conv_branch.3.", ".blocks.{j}.mixer.conv_branch.pwconv."),
    *(
        Rename(f".blocks.{{j}}.se.{name}.", f".blocks.{{j}}.mixer.gate.{name}.")
        for name in ("norm", "global_reduce", "channel_select")
    ),
)

register_family(
    Family(
        name="efficient_vmamba",
        backbone=EfficientVMamba,
        trunk=_TRUNK,
        tasks=TASKS,
        linear=r"\.(in_proj|out_proj|mlp\.fc1|mlp\.fc2|reduction|fc)\.weight$",
        first_release=FIRST_RELEASE,
        read_options=read_options,
        sign=r"layers\.\d+\.\d+\.conv_(pw|dw|pw2)\."
        r"|\.blocks\.\d+\.(conv_branch|se|mixer\.conv_branch|mixer\.ss2d|expand|project)\.",
        released=tuple(
            Released(
                f"efficient-vmamba-{arch}_8xb128_in1k",
                page=f"https://huggingface.co/TerryPei/EfficientVMamba-{arch.capitalize()}",
                logs=(f"{_LOGS}_{arch}.txt",),
            )
            for arch in ("tiny", "small", "base")
        ),
    )
)
