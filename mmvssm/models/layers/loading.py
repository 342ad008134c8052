"""LoadingMixin: backbones that never keep random weights silently."""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log
from torch import nn

from mmvssm.scheme import SCHEME

_ADVICE = (
    "load a file of the authors as 'mmvssm://FILE', or convert it: tools/convert_ema.py FILE DST"
)


class ForeignWeightsError(RuntimeError):
    """The checkpoint does not hold weights of the backbone that loads it."""


class LoadingMixin(nn.Module):
    """Mixin that logs random initialisation and rejects checkpoints of other networks."""

    init_cfg: Any

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says, and log a message if the weights are random.

        Raises:
            ForeignWeightsError: If the checkpoint in ``init_cfg`` does not hold weights of the
                backbone.
        """
        name, checkpoint = type(self).__name__, _checkpoint_of(self.init_cfg)
        if checkpoint is None:
            print_log(
                f"{name} starts from random weights: its init_cfg names no checkpoint",
                logger="current",
            )
        try:
            super().init_weights()  # type: ignore[misc]  # of mmengine's BaseModule
        # the errors of MMEngine and torch for files of another format
        except (AssertionError, pickle.UnpicklingError) as error:
            if checkpoint is None or checkpoint.startswith(SCHEME):
                raise
            reason = str(error).split("\n", 1)[0]
            raise ForeignWeightsError(
                f"{name} cannot start from {checkpoint!r} ({reason}); if its authors saved it,"
                f" name it in init_cfg as checkpoint='{SCHEME}{checkpoint}'"
            ) from error

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Reject a checkpoint unless more than half of its names are this backbone's.

        If the checkpoint lacks some output norms, all of them are initialised anew. The only norm
        of a classifier, for example, is not a useful start for a detector or segmentor.
        """
        own = {f"{prefix}{key}" for key in self.state_dict()}
        given = [key for key in state_dict if key.startswith(prefix)]
        known = sum(key in own for key in given)
        if own and 2 * known <= len(given) and not _is_sharded(own | set(given)):
            some = ", ".join(given[:3]) or "none of which it has"
            raise ForeignWeightsError(
                f"the checkpoint does not hold mmvssm's weights of {type(self).__name__}: it has"
                f" {known} of the backbone's {len(own)} names, and names such as {some}; {_ADVICE}"
            )
        norm = re.compile(rf"{re.escape(prefix)}norm\d+\.")
        norms = {key for key in own if norm.match(key)}
        if not norms <= state_dict.keys():
            for key in [key for key in state_dict if norm.match(key)]:
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)


def drop_parts(state_dict: dict, prefix: str, first: int | None = None) -> None:
    """Remove weights from a state dict.

    Args:
        state_dict: Weights by name, changed in place.
        prefix: Prefix of the names to remove.
        first: Remove only names in which ``prefix`` is followed by a number of at least ``first``;
            None to remove all.
    """
    for key in [key for key in state_dict if key.startswith(prefix)]:
        number = key.removeprefix(prefix).partition(".")[0]
        if first is None or (number.isdigit() and int(number) >= first):
            del state_dict[key]


def _checkpoint_of(init_cfg: dict | Sequence[dict] | None) -> str | None:
    """Return the checkpoint in an ``init_cfg``, or None."""
    entries = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
    return next((e["checkpoint"] for e in entries if e.get("type") == "Pretrained"), None)


def _is_sharded(names: set[str]) -> bool:
    """Return whether a wrapper inside the backbone renames and reshapes parameters."""
    return any("_fsdp_wrapped_module." in name or "_flat_param" in name for name in names)
