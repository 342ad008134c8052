"""Backbones by the names that configs begin with."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config
from torch import nn

import mmvssm.models
from mmvssm.registry import MODELS

#: Registered types by the names of the folders below ``configs``.
FAMILIES = {
    "vmamba": "VMamba",
    "efficient-vmamba": "EfficientVMamba",
    "msvmamba": "MSVMamba",
    "local-vmamba": "LocalVMamba",
    "local-vim": "LocalVim",
    "vim": "Vim",
}


def arch_names() -> dict[str, tuple[str, str]]:
    """Registered type and ``arch`` of every variant, by names such as ``vmamba-tiny-s1l8``."""
    return {
        f"{family}-{arch}": (type_name, arch)
        for family, type_name in FAMILIES.items()
        for arch in getattr(mmvssm.models, type_name).arch_settings
    }


def build_backbone(name: str) -> nn.Module:
    """The backbone of a variant or of a config, with arbitrary weights.

    Args:
        name: Family and arch joined by a dash, as in ``vmamba-tiny-s1l8``, or a config file,
            which ends in ``.py``, whose ``model`` has a ``backbone`` of this package.

    Raises:
        FileNotFoundError: If there is no such config file.
        ValueError: If the name is unknown, or the config has no backbone of this package.
    """
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise FileNotFoundError(f"there is no config file {name!r}")
        cfg = Config.fromfile(name).get("model", {}).get("backbone", {})
        if not str(cfg.get("type", "")).startswith("mmvssm."):
            raise ValueError(
                f"{name!r} has no model.backbone of mmvssm; its type is {cfg.get('type')!r}"
            )
        return MODELS.build(cfg)
    known = arch_names()
    if name not in known:
        raise ValueError(
            f"{name!r} is neither a config file (.py) nor one of these variants: {', '.join(known)}"
        )
    type_name, arch = known[name]
    return getattr(mmvssm.models, type_name)(arch)
