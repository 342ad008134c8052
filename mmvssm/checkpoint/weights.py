"""Which weights of a checkpoint to take: those trained, or their moving average (EMA)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .reading.references import Inert
from .reading.values import kind_of
from .words import shown, some

#: Where files keep moving averages, and where the trained weights themselves ("online").
EMA_ENTRIES = ("model_ema", "ema_model", "state_dict_ema")
ONLINE_ENTRIES = ("model", "state_dict")
KINDS = ("ema", "online")
#: What parallel training, averaging and compilation put before names.
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")
#: Counters that profilers leave among the weights.
COUNTERS = re.compile(r"(^|\.)total_(ops|params)$")


@dataclass(frozen=True)
class Weights:
    """Weights of a checkpoint.

    Attributes:
        kind: ``'ema'`` (a moving average) or ``'online'`` (as trained).
        place: Where the file holds them, in words.
        tensors: By name, without the prefixes ``module.`` of parallel training.
    """

    kind: str
    place: str
    tensors: dict[str, Tensor]


def find_weights(checkpoint: Mapping[str, Any]) -> list[Weights]:
    """All weights in a checkpoint, moving averages first.

    A file that MMEngine's ``EMAHook`` has written holds the *averages* as ``state_dict``, so that a
    plain test evaluates them, and the trained weights as ``ema_state_dict``.

    Args:
        checkpoint: What :func:`read_checkpoint` gives.

    Raises:
        ValueError: If two entries differ only by the prefix ``module.``, or one cannot be read.
    """
    return sorted(_entries(checkpoint), key=lambda found: KINDS.index(found.kind))


def _entries(checkpoint: Mapping[str, Any]) -> Iterator[Weights]:
    if _is_from_ema_hook(checkpoint):
        yield _weights("ema", "'state_dict' (saved by EMAHook)", checkpoint["state_dict"])
        # its counter of updates stands beside the model
        online = {k: v for k, v in checkpoint["ema_state_dict"].items() if k != "steps"}
        yield _weights("online", "'ema_state_dict' (saved by EMAHook)", online)
        return
    known = _known_kind(checkpoint)
    places = [("ema", entry) for entry in (*EMA_ENTRIES, "ema_state_dict")]
    places += [(known, entry) for entry in ONLINE_ENTRIES]
    found = [(kind, entry) for kind, entry in places if _tensors(checkpoint.get(entry))]
    for kind, entry in found:
        if len(found) == 1 and entry == "state_dict" and _is_wrapped_twice(checkpoint[entry]):
            kind = "ema"
        yield _weights(kind, repr(entry), checkpoint[entry])
    if not found and _tensors(checkpoint):
        kind = "ema" if _is_wrapped_twice(checkpoint) else known
        yield Weights(kind, "the top of the file", _plain_names(_tensors(checkpoint), "the file"))


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


def _is_wrapped_twice(entry: Any) -> bool:
    """Whether an averaging wrapper around a parallel model saved them, as EfficientVMamba's."""
    return all(name.startswith("module.module.") for name in _tensors(entry))


def _is_unread(entry: Any) -> bool:
    """Whether something is there, but no tensors."""
    is_something = isinstance(entry, Inert) or (isinstance(entry, Mapping) and len(entry) > 0)
    return is_something and not _tensors(entry)


def _weights(kind: str, place: str, entry: Any) -> Weights:
    if isinstance(entry, Mapping):
        unread = [name for name, value in entry.items() if isinstance(value, Inert)]
        if unread:
            raise ValueError(
                f"{place} holds more than plain tensors: {some(unread)} cannot be read; save them"
                " as such (sparse and quantised ones as dense) where the code for them is"
            )
    return Weights(kind, place, _plain_names(_tensors(entry), place))


def _plain_names(tensors: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """Without the prefixes of wrappers, and without counters."""
    plain: dict[str, Tensor] = {}
    for name, value in tensors.items():
        short = WRAPPERS.sub("", name)
        if COUNTERS.search(short):
            continue
        if short in plain:
            raise ValueError(
                f"{place} holds {shown(short)} twice, with and without 'module.': keep one of them"
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
        entry: kind_of(checkpoint[entry])
        for entry in (*EMA_ENTRIES, *ONLINE_ENTRIES)
        if _is_unread(checkpoint.get(entry))
    }
    if not found:
        raise ValueError(_nothing_found(checkpoint, unread))
    # to take the others in silence would not be what was asked for
    lost = [entry for entry in EMA_ENTRIES if entry in unread]
    if lost and kind != "online":
        raise ValueError(
            f"{lost[0]!r} holds {unread[lost[0]]} in place of tensors, so the averages cannot be"
            " read: --weights online takes the others"
        )
    for weights in found:
        if kind in ("auto", weights.kind):
            return weights
    there = ", ".join(f"{weights.kind} weights in {weights.place}" for weights in found)
    raise ValueError(f"the file has no {kind} weights; it has {there}")


def _nothing_found(checkpoint: Mapping[str, Any], unread: Mapping[str, str]) -> str:
    names = some(list(checkpoint)) or "nothing"
    if "param_groups" in checkpoint or "optimizer" in checkpoint:
        return f"the file holds the state of an optimizer but no weights of a network: {names}"
    if unread:
        words = ", ".join(f"{entry!r} holds {kind}" for entry, kind in unread.items())
        return f"the file holds no weights: {words}, no dict of tensors"
    entries = ", ".join(map(repr, (*EMA_ENTRIES, *ONLINE_ENTRIES)))
    return f"the file holds no weights at its top or under {entries}; it holds {names}"
