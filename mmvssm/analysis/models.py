"""Backbones by the names that configs begin with."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.utils import to_2tuple
from torch import nn

from mmvssm.families import FAMILIES, arch_names
from mmvssm.zoo import build_model


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


def build_without_weights(cfg: Config) -> nn.Module:
    """Build the model of a config without memory for its weights, where its backbone allows it.

    Backbones of the declared families do; a model with another has arbitrary weights.

    Raises:
        ValueError: See :func:`mmvssm.zoo.build_model`.
    """
    kind = (cfg.get("model") or {}).get("backbone", {}).get("type")
    word = str(getattr(kind, "__name__", kind))
    is_ours = any(family.names_it(word) for family in FAMILIES.values())
    with torch.device("meta" if is_ours else "cpu"):
        return build_model(cfg)


def image_size(cfg: Config) -> tuple[int, int] | None:
    """Return the size ``(H, W)`` of the images that a classifier is tested with.

    Returns:
        The size that the test pipeline crops to; None if it does not crop.
    """
    dataset = (cfg.get("test_dataloader") or {}).get("dataset", {})
    crops = [step for step in dataset.get("pipeline", ()) if step["type"] == "CenterCrop"]
    return to_2tuple(crops[-1]["crop_size"]) if crops else None
