"""The scheme ``mmvssm://`` for MMEngine's checkpoint loader; importing it loads nothing else."""

from __future__ import annotations

import sys
from typing import Any

SCHEME = "mmvssm://"


def load_from_mmvssm(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load released weights by name, for MMEngine's ``CheckpointLoader``.

    Args:
        filename: ``mmvssm://NAME`` (see :meth:`mmvssm.hub.Address.parse`).
        map_location: Device (see :func:`torch.load`).

    Returns:
        ``dict(meta=..., state_dict=...)`` with the weights of the classifier (``backbone.*`` and
        ``head.*``), detector or segmentor in the file.

    Raises:
        ValueError, ReleasedFileError: See :func:`mmvssm.hub.fetch`.
    """
    import torch

    from mmvssm.hub import fetch

    return torch.load(fetch(filename), map_location=map_location, weights_only=True)


def register_scheme() -> None:
    """Register ``mmvssm://`` with MMEngine's checkpoint loader if the loader is imported.

    Importing the package or its models calls this function. Our configs call it as well, for
    inferencers that load weights before they build the model.
    """
    module = sys.modules.get("mmengine.runner.checkpoint")
    if module is not None:
        module.CheckpointLoader.register_scheme(SCHEME, load_from_mmvssm, force=True)
