"""The scheme ``mmvssm://`` of MMEngine's checkpoint loader; light, as nothing is loaded for it."""

from __future__ import annotations

import sys
from typing import Any

SCHEME = "mmvssm://"


def load_from_mmvssm(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load released weights by name, for MMEngine's ``CheckpointLoader``.

    Args:
        filename: ``mmvssm://NAME``, see :meth:`mmvssm.hub.Address.parse`.
        map_location: Device, see :func:`torch.load`.

    Returns:
        ``dict(meta=..., state_dict=...)``: a classifier's ``backbone.*`` and ``head.*``, or a
        detector or segmentor where the file is one.

    Raises:
        ValueError, ReleasedFileError: See :func:`mmvssm.hub.fetch`.
    """
    import torch

    from mmvssm.hub import fetch

    return torch.load(fetch(filename), map_location=map_location, weights_only=True)


def register_scheme() -> None:
    """Let MMEngine's checkpoint loader know ``mmvssm://``, once the loader itself is imported.

    Importing the package or its models does it. Our configs do it as well, for inferencers, which
    load weights before they build the model.
    """
    module = sys.modules.get("mmengine.runner.checkpoint")
    if module is not None:
        module.CheckpointLoader.register_scheme(SCHEME, load_from_mmvssm, force=True)
