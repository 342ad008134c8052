"""Initial weights of fine-tuning: setting them in the config, and checking that they fit."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from mmvssm.messages import join_names

_BACKBONE = "backbone."
#: Fraction of a backbone's weights that the file may lack, such as output norms.
ABSENT = 0.01


def set_start(cfg: Config, checkpoint: str | None) -> Config:
    """Return the config that starts from a checkpoint, or from random weights.

    From a classifier, the backbone is loaded and the head is new. From a detector or segmentor of
    the same task, all weights with matching shapes are loaded.

    Args:
        cfg: The config; it is not changed.
        checkpoint: A file or another address for MMEngine's loader; None for random weights.

    Raises:
        ValueError: If the file does not hold weights of this backbone.
        OSError: If it cannot be read.
    """
    cfg = deepcopy(cfg)
    cfg.load_from = None
    cfg.model.pop("init_cfg", None)
    cfg.model.backbone.init_cfg = None
    if checkpoint is None:
        return cfg
    weights = _read(checkpoint)
    trunk = {
        key[len(_BACKBONE) :]: value for key, value in weights.items() if key.startswith(_BACKBONE)
    }
    if not trunk:
        raise ValueError(
            f"{checkpoint!r} holds no weights of a backbone ('{_BACKBONE}...'; it has "
            f"{join_names(list(weights), 3)}): give a checkpoint of an OpenMMLab training run or "
            "of tools/convert_ema.py"
        )
    _require_fit(cfg, trunk, checkpoint)
    start = dict(type="Pretrained", checkpoint=checkpoint)
    dense = any(not key.startswith((_BACKBONE, "head.", "neck.")) for key in weights)
    if dense and cfg.default_scope != "mmpretrain":
        cfg.model.init_cfg = start
    else:
        cfg.model.backbone.init_cfg = dict(start, prefix=_BACKBONE)
    return cfg


def _read(checkpoint: str) -> Mapping[str, Tensor]:
    content = CheckpointLoader.load_checkpoint(checkpoint, map_location="cpu")
    weights = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {key: value for key, value in weights.items() if isinstance(value, Tensor)}


def _require_fit(cfg: Config, trunk: dict[str, Tensor], checkpoint: str) -> None:
    """Check that the backbone can load the weights."""
    init_default_scope(cfg.default_scope)
    backbone: nn.Module = MODELS.build(cfg.model.backbone)
    what = f"{cfg.model.backbone.type}, arch={cfg.model.backbone.get('arch')!r}"
    try:
        missing = backbone.load_state_dict(trunk, strict=False).missing_keys
    except RuntimeError as error:
        raise ValueError(
            f"{checkpoint!r} does not fit the backbone ({what}): {_last_line(error)}"
        ) from None
    sizes = {key: value.numel() for key, value in backbone.state_dict().items()}
    absent = sum(sizes[key] for key in missing) / sum(sizes.values())
    if absent > ABSENT:
        raise ValueError(
            f"{checkpoint!r} does not fit the backbone ({what}): {absent:.0%} of its weights are "
            f"missing, e.g. {join_names(missing, 3)}"
        )


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
