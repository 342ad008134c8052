"""Which weights of a checkpoint to take: those trained, or their moving average (EMA)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from .messages import join_names, printable
from .reading.unpickler import Inert, kind_of

#: Where files keep moving averages, and where the trained weights themselves ("online").
EMA_ENTRIES = ("model_ema", "ema_model", "state_dict_ema")
ONLINE_ENTRIES = ("model", "state_dict")
KINDS = ("ema", "online")
#: What parallel training, averaging and compilation put before names.
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")
#: What torch's ``AveragedModel`` counts its updates by, beside the weights.
AVERAGED = "n_averaged"
#: Counters that profilers and averages leave among the weights.
COUNTERS = re.compile(rf"(^|\.)total_(ops|params)$|^{AVERAGED}$")
#: More tensors than any checkpoint has under one entry; each takes some work.
MAX_TENSORS = 2**16


@dataclass(frozen=True)
class Weights:
    """Weights of a checkpoint.

    Attributes:
        kind: ``'ema'`` (a moving average) or ``'online'`` (as trained).
        place: Where the file holds them, in words.
        entry: What the file has there.
    """

    kind: str
    place: str
    entry: Any = field(repr=False)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Tensors by name, without the prefixes ``module.`` of parallel training.

        Raises:
            ValueError: If some cannot be read, two differ only by that prefix, there are none, or
                more than any network has.
        """
        found = _tensors(self.entry)
        if len(found) > MAX_TENSORS:
            raise ValueError(
                f"{self.place} holds {len(found)} tensors, more than {MAX_TENSORS}, which no"
                " network of ours has; check that it is the right file"
            )
        if isinstance(self.entry, Mapping):
            unread = [name for name, value in self.entry.items() if isinstance(value, Inert)]
            if unread:
                raise ValueError(
                    f"{self.place} holds more than plain tensors: {join_names(unread)} cannot be read;"
                    " save them as such (sparse and quantised ones as dense) where the code for"
                    " them is"
                )
        plain = _plain_names(found, self.place)
        if not plain:
            raise ValueError(f"{self.place} holds no weights, but counters: {join_names(found)}")
        return plain


def find_weights(checkpoint: Mapping[str, Any]) -> list[Weights]:
    """All weights in a checkpoint, moving averages first.

    A file that MMEngine's ``EMAHook`` has written holds the *averages* as ``state_dict``, so that a
    plain test evaluates them, and the trained weights as ``ema_state_dict``.

    Args:
        checkpoint: What :func:`read_checkpoint` gives.
    """
    return sorted(_entries(checkpoint), key=lambda found: KINDS.index(found.kind))


def _entries(checkpoint: Mapping[str, Any]) -> Iterator[Weights]:
    if _is_from_ema_hook(checkpoint):
        yield Weights("ema", "'state_dict' (saved by EMAHook)", checkpoint["state_dict"])
        # its counter of updates stands beside the model
        online = {k: v for k, v in checkpoint["ema_state_dict"].items() if k != "steps"}
        yield Weights("online", "'ema_state_dict' (saved by EMAHook)", online)
        return
    known = _known_kind(checkpoint)
    places = [("ema", entry) for entry in (*EMA_ENTRIES, "ema_state_dict")]
    places += [(known, entry) for entry in ONLINE_ENTRIES]
    found = [(kind, entry) for kind, entry in places if _tensors(checkpoint.get(entry))]
    if len(found) > 1:
        yield from (Weights(kind, repr(entry), checkpoint[entry]) for kind, entry in found)
    elif found:
        kind, entry = found[0]
        yield _alone(kind, repr(entry), checkpoint[entry], entry == "state_dict")
    elif tensors := _tensors(checkpoint):  # beside them there may be options and the like
        yield _alone(known, "the top of the file", tensors)


def _is_from_ema_hook(checkpoint: Mapping[str, Any]) -> bool:
    averaged = checkpoint.get("ema_state_dict")
    return isinstance(averaged, Mapping) and "steps" in averaged and "state_dict" in checkpoint


def _known_kind(checkpoint: Mapping[str, Any]) -> str:
    """What one of our own files says of its weights."""
    meta = checkpoint.get("meta")
    own = meta.get("mmvssm") if isinstance(meta, Mapping) else None
    kind = own.get("weights") if isinstance(own, Mapping) else None
    return kind if kind in KINDS else "online"


def _tensors(entry: Any) -> dict[str, Tensor]:
    if isinstance(entry, nn.Module):  # a whole network, of a trusted file
        entry = entry.state_dict()
    if not isinstance(entry, Mapping):
        return {}
    return {
        name: value
        for name, value in entry.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def _alone(kind: str, place: str, entry: Any, is_release: bool = True) -> Weights:
    """The only weights of a file, which may be averages whatever their entry is called.

    ``is_release``: whether releases have them there, and not only trainings.
    """
    names = _tensors(entry)
    if any(WRAPPERS.sub("", name) == AVERAGED for name in names):
        return Weights("ema", f"{place} (saved by torch's AveragedModel)", entry)
    # an averaging wrapper around a parallel model saved them, as EfficientVMamba's authors did
    if is_release and kind == "online" and all(name.startswith("module.module.") for name in names):
        return Weights("ema", f"{place} (by their prefix module.module.)", entry)
    return Weights(kind, place, entry)


def _is_unread(entry: Any) -> bool:
    """Whether something is there, but no tensors."""
    is_something = isinstance(entry, Inert) or (isinstance(entry, Mapping) and len(entry) > 0)
    return is_something and not _tensors(entry)


def _words(entry: Any) -> str:
    return "a dict without tensors" if isinstance(entry, Mapping) else kind_of(entry)


def _plain_names(tensors: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """Without the prefixes of wrappers, and without counters."""
    plain: dict[str, Tensor] = {}
    for name, value in tensors.items():
        short = WRAPPERS.sub("", name)
        if COUNTERS.search(short):
            continue
        if short in plain:
            raise ValueError(
                f"{place} holds {printable(short)} twice, with and without 'module.': keep one of them"
            )
        plain[short] = value
    return plain


def select_weights(checkpoint: Mapping[str, Any], kind: str = "auto") -> Weights:
    """The weights of one kind.

    Args:
        checkpoint: What :func:`read_checkpoint` gives.
        kind: ``'ema'``, ``'online'``, or ``'auto'`` for moving averages where there are some, else
            the weights as trained.

    Raises:
        ValueError: If there are none; the message lists what there is.
    """
    if kind not in (*KINDS, "auto"):
        raise ValueError(f"weights must be auto, {' or '.join(KINDS)}, got {kind!r}")
    found = find_weights(checkpoint)
    unread = {
        entry: _words(checkpoint[entry])
        for entry in (*EMA_ENTRIES, *ONLINE_ENTRIES)
        if _is_unread(checkpoint.get(entry))
    }
    if not found:
        raise ValueError(_nothing_found(checkpoint, unread))
    # to take the others in silence would not be what was asked for
    lost = [entry for entry in EMA_ENTRIES if entry in unread]
    if lost and kind != "online":
        raise ValueError(
            f"{lost[0]!r} holds {unread[lost[0]]} in place of tensors: save the averages as a dict"
            f" of torch tensors by name{_instead('online')}"
        )
    for weights in found:
        if kind in ("auto", weights.kind):
            _require_tensors(weights, found)
            return weights
    there = ", ".join(f"{weights.kind} weights in {weights.place}" for weights in found)
    raise ValueError(f"the file has no {kind} weights; it has {there}")


def _require_tensors(weights: Weights, found: list[Weights]) -> None:
    """Raise ValueError for weights that cannot be read, and name the others that there are."""
    try:
        weights.tensors  # noqa: B018
    except ValueError as error:
        others = [other.kind for other in found if other.kind != weights.kind]
        raise ValueError(f"{error}{_instead(others[0]) if others else ''}") from None


def _instead(kind: str) -> str:
    return f"; or take the {kind} weights (tools/convert_ema.py --weights {kind})"


def _nothing_found(checkpoint: Mapping[str, Any], unread: Mapping[str, str]) -> str:
    names = join_names(list(checkpoint)) or "nothing"
    if "param_groups" in checkpoint or "optimizer" in checkpoint:
        return (
            f"the file holds the state of an optimizer but no weights of a network: {names}; take"
            " the file of the same training that has them"
        )
    if unread:
        words = ", ".join(f"{entry!r} holds {kind}" for entry, kind in unread.items())
        return f"the file holds no weights: {words}; save them as a dict of torch tensors by name"
    entries = ", ".join(map(repr, (*EMA_ENTRIES, *ONLINE_ENTRIES)))
    return f"the file holds no weights at its top or under {entries}; it holds {names}"
