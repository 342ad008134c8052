"""Backbones by the names that configs begin with."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config
from torch import nn

from mmvssm.families import FAMILIES, arch_names


def build_backbone(name: str) -> nn.Module:
    """Build the backbone of a variant or of a config, with arbitrary weights.

    Args:
        name: Family and arch joined by a dash, as in ``vmamba-tiny-s1l8``, or a config file, which
            ends in ``.py``, whose ``model`` has a ``backbone`` of a declared family; modules of its
            ``custom_imports`` may declare families.

    Raises:
        FileNotFoundError: If there is no such config file.
        ValueError: If the name is unknown, or the config has no backbone of a declared family.
    """
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise FileNotFoundError(f"there is no config file {name!r}")
        options = dict(Config.fromfile(name).get("model", {}).get("backbone", {}))
        kind = options.pop("type", None)
        word = str(getattr(kind, "__name__", kind))
        for family in FAMILIES.values():
            if family.names_it(word):
                options.pop("_scope_", None)
                return family.backbone(**options)
        raise ValueError(
            f"{name!r} must have a model.backbone of one of the families"
            f" {', '.join(FAMILIES)}, got the type {kind!r}"
        )
    known = arch_names()
    if name not in known:
        raise ValueError(
            f"{name!r} is neither a config file (.py) nor one of these variants: {', '.join(known)}"
        )
    family, arch = known[name]
    return family.backbone(arch)
