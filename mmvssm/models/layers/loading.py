"""LoadingMixin: backbones that do not go on with random weights in silence."""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log
from torch import nn

from mmvssm.scheme import SCHEME

_ADVICE = (
    "load a file of its authors as 'mmvssm://FILE', or convert it by tools/convert_ema.py FILE DST"
)


class ForeignWeightsError(RuntimeError):
    """A checkpoint has no weights of the backbone that it is loaded into."""


class LoadingMixin(nn.Module):
    """Says where weights come from, and refuses checkpoints that are not of the backbone."""

    init_cfg: Any

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says, and say so where this is at random.

        Raises:
            ForeignWeightsError: If the checkpoint that ``init_cfg`` names has no weights of the
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
        # what MMEngine and torch say of files of another form
        except (AssertionError, pickle.UnpicklingError) as error:
            if checkpoint is None or checkpoint.startswith(SCHEME):
                raise
            reason = str(error).split("\n", 1)[0]
            raise ForeignWeightsError(
                f"{name} cannot start from {checkpoint!r} ({reason}); if its authors saved it,"
                f" name it in init_cfg as checkpoint='{SCHEME}{checkpoint}'"
            ) from error

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Refuse a checkpoint of which less than half of the names are this backbone's.

        Norms of outputs start anew if it lacks some of them, as a classifier's does: its only norm
        is no start for a detector or segmentor.
        """
        own = {f"{prefix}{key}" for key in self.state_dict()}
        given = [key for key in state_dict if key.startswith(prefix)]
        known = sum(key in own for key in given)
        if own and 2 * known <= len(given) and not _is_sharded(own | set(given)):
            some = ", ".join(given[:3]) or "none of which it has"
            raise ForeignWeightsError(
                f"the checkpoint is not one of mmvssm's: {known} of the {len(own)} weights of"
                f" {type(self).__name__} are in it, and names such as {some}; {_ADVICE}"
            )
        norm = re.compile(rf"{re.escape(prefix)}norm\d+\.")
        norms = {key for key in own if norm.match(key)}
        if not norms <= state_dict.keys():
            for key in [key for key in state_dict if norm.match(key)]:
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)


def drop_parts(state_dict: dict, prefix: str, first: int | None = None) -> None:
    """Take weights out of a state dict.

    Args:
        state_dict: Weights by name, changed in place.
        prefix: What their names begin with.
        first: Of parts that are numbered behind ``prefix``, the first to leave out; None for all.
    """
    for key in [key for key in state_dict if key.startswith(prefix)]:
        number = key.removeprefix(prefix).partition(".")[0]
        if first is None or (number.isdigit() and int(number) >= first):
            del state_dict[key]


def _checkpoint_of(init_cfg: dict | Sequence[dict] | None) -> str | None:
    """Return the checkpoint that an initialisation starts from."""
    entries = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
    return next((e["checkpoint"] for e in entries if e.get("type") == "Pretrained"), None)


def _is_sharded(names: set[str]) -> bool:
    """Whether a wrapper inside of the backbone gives parameters names and forms of its own."""
    return any("_fsdp_wrapped_module." in name or "_flat_param" in name for name in names)
