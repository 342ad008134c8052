"""Batches as mmpretrain's training script makes them, chosen in the config."""

from collections.abc import Sequence
from typing import Any

from mmengine.dataset import default_collate as collate

from ..registry import FUNCTIONS


@FUNCTIONS.register_module()
def default_collate(batch: Sequence, _scope_: str | None = None) -> Any:
    """MMEngine's ``default_collate``, from configs that are read by path or by name.

    For ``collate_fn=dict(type="mmvssm.default_collate")``. Of a config that is inherited as
    ``package::file`` MMEngine notes the package in this dict, and then hands the note on as an
    argument, which its own function refuses.

    Args:
        batch: Samples; their tensors have one shape.
        _scope_: The note, not used.

    Returns:
        The samples' structure with tensors stacked along a new first axis.
    """
    return collate(batch)
