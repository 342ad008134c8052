"""The collate function of mmpretrain's training script, selectable in a config."""

from collections.abc import Sequence
from typing import Any

from mmengine.dataset import default_collate as collate

from ..registry import FUNCTIONS


@FUNCTIONS.register_module()
def default_collate(batch: Sequence, _scope_: str | None = None) -> Any:
    """Collate samples with MMEngine's ``default_collate``.

    Use it as ``collate_fn=dict(type="mmvssm.default_collate")``. In a config that is inherited as
    ``package::file``, MMEngine adds ``_scope_`` to this dict and passes it as an argument, which
    its own function rejects.

    Args:
        batch: Samples, whose tensors must have the same shape.
        _scope_: Ignored.

    Returns:
        The structure of a sample, with tensors stacked along a new first axis.
    """
    return collate(batch)
