"""Models of the config zoo by name, as in timm and mmpretrain."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config

from .libraries import missing_library_named

if TYPE_CHECKING:
    import torch
    from mmengine.model import BaseModel

_CONFIGS = Path(__file__).resolve().parent / ".mim" / "configs"
LIBRARIES = ("mmpretrain", "mmdet", "mmseg")
#: Folders of configs that are not part of the zoo.
_OTHERS = ("_base_", "demo", "options")


def _paths() -> dict[str, Path]:
    """Return the configs of the zoo by name."""
    files = sorted(_CONFIGS.glob("*/*.py"))
    return {path.stem: path for path in files if path.parent.name not in _OTHERS}


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Return the names of the models of the config zoo, for :func:`get_model`.

    Args:
        pattern: Shell pattern of names, such as ``'*vmamba*upernet*'``.
        pretrained: Whether to list only models with published weights.
    """
    names = [name for name in _paths() if fnmatchcase(name, pattern)]
    if pretrained:
        from mmvssm.hub import released_files

        names = [name for name in names if name in released_files()]
    return names


def build_model(cfg: Config) -> BaseModel:
    """Build the model of a config of mmpretrain, mmdetection or mmsegmentation.

    Args:
        cfg: A config with ``default_scope`` and ``model``; checkpoints in it are not loaded.

    Raises:
        ValueError: If the config belongs to none of the libraries, or has no model.
        MissingLibraryError: If its library, or mmcv, is not installed.
    """
    from importlib import import_module

    from mmengine.registry import DefaultScope

    scope = cfg.get("default_scope")
    if scope not in LIBRARIES:
        raise ValueError(f"default_scope must be one of {', '.join(LIBRARIES)}, got {scope!r}")
    if cfg.get("model") is None:
        raise ValueError(f"the config {cfg.filename!r} has no model")
    model = dict(cfg.model)
    if cfg.get("data_preprocessor") is not None:  # as MMEngine's runner does
        model.setdefault("data_preprocessor", cfg.data_preprocessor)
    what = f"a config of {scope}"
    with missing_library_named(what), DefaultScope.overwrite_default_scope(scope):
        return import_module(f"{scope}.registry").MODELS.build(model)


def get_model(
    name: str,
    pretrained: bool | str = False,
    device: str | torch.device | None = None,
    **model: Any,
) -> BaseModel:
    """Build a classifier, detector or segmentor of the config zoo.

    Args:
        name: A name of :func:`list_models`.
        pretrained: True to load the published weights, or a checkpoint to load: a path, a URL or
            ``'mmvssm://NAME'``. With False, all weights are random; a pretrained backbone in the
            config is not loaded either.
        device: Device of the model; None for the CPU.
        **model: Changes to the config's ``model``, such as ``head=dict(num_classes=10)`` or
            ``backbone=dict(frozen_stages=1)``.

    Returns:
        The model in evaluation mode. ``model.cfg`` is its config, and ``model.dataset_meta`` holds
        the classes if a checkpoint has them. The inferencers of mmpretrain accept the model.

    Raises:
        ValueError: If there is no such model, or its weights were not published.
        ReleasedFileError: If the weights are not available (see :func:`mmvssm.hub.fetch`).
        MissingLibraryError: If the library of the model is not installed.

    Examples:
        >>> import mmvssm, torch
        >>> mmvssm.list_models("vmamba-tiny-s1l8*in1k")
        ['vmamba-tiny-s1l8_8xb128_in1k']
        >>> model = mmvssm.get_model("vmamba-tiny-s1l8_8xb128_in1k")
        >>> model(torch.rand(1, 3, 224, 224)).shape
        torch.Size([1, 1000])
    """
    from mmengine.runner import load_checkpoint

    from mmvssm.scheme import SCHEME

    paths = _paths()
    if name not in paths:
        close = difflib.get_close_matches(name, paths, n=4, cutoff=0.3)
        raise ValueError(
            f"name must be one of mmvssm.list_models(), got {name!r}; closest: {', '.join(close)}"
        )
    with missing_library_named(f"the model {name!r}"):
        cfg = Config.fromfile(paths[name])
    cfg.merge_from_dict(dict(model=model))
    built = build_model(cfg)
    # mmdet and mmseg look for the first, mmpretrain for the second
    built.cfg = built._config = cfg
    if pretrained:
        checkpoint = f"{SCHEME}{name}" if pretrained is True else pretrained
        loaded = load_checkpoint(built, checkpoint, map_location="cpu")
        built.dataset_meta = built._dataset_meta = loaded.get("meta", {}).get("dataset_meta", {})
    return built.to(device).eval() if device is not None else built.eval()
