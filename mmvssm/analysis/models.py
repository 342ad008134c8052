"""Building of backbones and models by name or config, and loading of their weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from mmvssm.checkpoint import select_weights
from mmvssm.families import FAMILIES, arch_names
from mmvssm.hub import read_weights_file
from mmvssm.libraries import missing_library_named
from mmvssm.messages import join_names
from mmvssm.zoo import build_model

#: Output norms, which a variant may have at more stages than the checkpoint's network.
_OUT_NORM = re.compile(r"norm\d+\.")


def build_backbone(name: str) -> nn.Module:
    """Build the backbone of a variant or of a config, with arbitrary weights.

    Args:
        name: Family and arch joined by a dash, such as ``vmamba-tiny-s1l8``, or a config file
            (``.py``) whose ``model`` has a ``backbone`` of a declared family; modules in its
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
    """Build the model of a config, without allocating its weights if the backbone supports it.

    Backbones of the declared families do; models with other backbones get arbitrary weights.

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


def load_backbone(name: str, checkpoint: str | None = None) -> nn.Module:
    """Build a backbone with the weights of a checkpoint, in evaluation mode.

    Args:
        name: See :func:`build_backbone`.
        checkpoint: A file or ``mmvssm://NAME``, of the backbone or of a complete network, read
            without running code in it; None for random weights as in training from scratch.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the name is unknown, or the weights do not fit.
        CheckpointError: If the file is not a checkpoint.
    """
    backbone = build_backbone(name)
    if checkpoint is None:
        backbone.init_cfg = [part for part in _entries(backbone.init_cfg) if not _is_file(part)]
        with _silence():
            backbone.init_weights()
        return backbone.eval()
    weights = select_weights(read_weights_file(checkpoint)).tensors
    prefix = "backbone."
    own = {k.removeprefix(prefix): value for k, value in weights.items() if k.startswith(prefix)}
    _load(backbone, own or weights, checkpoint, _OUT_NORM)
    return backbone.eval()


def load_model(cfg: Config, checkpoint: str) -> nn.Module:
    """Build the complete model of a config with the weights of a checkpoint, in evaluation mode.

    Args:
        cfg: A config of mmpretrain, mmdet or mmseg.
        checkpoint: See :func:`load_backbone`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the weights do not fit.
        CheckpointError: If the file is not a checkpoint.
        MissingLibraryError: If the config's library, or mmcv, is not installed.
    """
    with default_scope(cfg):
        model = build_model(cfg)
    _load(model, select_weights(read_weights_file(checkpoint)).tensors, checkpoint)
    return model.eval()


@contextmanager
def default_scope(cfg: Config) -> Iterator[None]:
    """Register the types of the config's library, and look types up in its scope.

    Raises:
        MissingLibraryError: If the library, or mmcv, is not installed.
    """
    with missing_library_named("the network of this config"):
        import_module(f"{cfg.default_scope}.utils").register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        yield


def _load(
    module: nn.Module,
    weights: dict[str, Tensor],
    checkpoint: str,
    optional: re.Pattern | None = None,
) -> None:
    """Load weights into a module; raise ValueError if some are missing or do not fit."""
    try:
        missing = module.load_state_dict(dict(weights), strict=False).missing_keys
    except RuntimeError as error:
        raise ValueError(f"{checkpoint!r} does not fit: {error}") from error
    if optional is not None:
        missing = [key for key in missing if not optional.match(key)]
    if missing:
        raise ValueError(
            f"{checkpoint!r} does not fit: it lacks {len(missing)} weights,"
            f" {join_names(missing, 3)}"
        )


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress MMEngine's message about every parameter that is initialised."""
    level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(level)


def _entries(init_cfg: dict | list | None) -> list[dict]:
    return [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg or [])


def _is_file(init: dict) -> bool:
    return init.get("type") == "Pretrained"
