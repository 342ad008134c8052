"""Which weights of a checkpoint to take: those trained, or their moving average (EMA)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

#: Where files keep moving averages, and where the trained weights themselves ("online").
EMA_ENTRIES = ("model_ema", "ema_model", "state_dict_ema")
ONLINE_ENTRIES = ("model", "state_dict")
KINDS = ("ema", "online")
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
        ValueError: If two entries differ only by the prefix ``module.``.
    """
    return sorted(_entries(checkpoint), key=lambda found: KINDS.index(found.kind))


def _entries(checkpoint: Mapping[str, Any]) -> Iterator[Weights]:
    if _is_from_ema_hook(checkpoint):
        for kind, entry in (("ema", "state_dict"), ("online", "ema_state_dict")):
            yield _weights(kind, f"{entry!r} (saved by EMAHook)", checkpoint[entry])
        return
    known = _known_kind(checkpoint)
    places = [("ema", entry) for entry in (*EMA_ENTRIES, "ema_state_dict")]
    places += [(known, entry) for entry in ONLINE_ENTRIES]
    found = [(kind, entry) for kind, entry in places if _tensors(checkpoint.get(entry))]
    for kind, entry in found:
        # a copy by an averaging wrapper around a parallel one: so EfficientVMamba's are released
        if len(found) == 1 and entry == "state_dict" and _is_wrapped_twice(checkpoint[entry]):
            kind = "ema"
        yield _weights(kind, repr(entry), checkpoint[entry])
    if not found and _tensors(checkpoint):
        yield _weights(known, "the top of the file", checkpoint)


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
    # the counter of MMEngine's averaging stands beside the wrapped model
    return {
        name: value
        for name, value in entry.items()
        if isinstance(name, str) and isinstance(value, Tensor) and name != "steps"
    }


def _is_wrapped_twice(entry: Any) -> bool:
    return all(name.startswith("module.module.") for name in _tensors(entry))


def _weights(kind: str, place: str, entry: Any) -> Weights:
    tensors: dict[str, Tensor] = {}
    for name, value in _tensors(entry).items():
        plain = re.sub(r"^(module\.)+", "", name)
        if COUNTERS.search(plain):
            continue
        if plain in tensors:
            raise ValueError(
                f"{place} holds {plain!r} twice, with and without 'module.': keep one of the two"
            )
        tensors[plain] = value
    return Weights(kind, place, tensors)


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
    if not found:
        raise ValueError(_nothing_found(checkpoint))
    for weights in found:
        if kind in ("auto", weights.kind):
            return weights
    there = ", ".join(f"{weights.kind} weights in {weights.place}" for weights in found)
    raise ValueError(f"the file has no {kind} weights; it has {there}")


def _nothing_found(checkpoint: Mapping[str, Any]) -> str:
    names = ", ".join(map(repr, list(checkpoint)[:8])) or "nothing"
    if "param_groups" in checkpoint or "optimizer" in checkpoint:
        return f"the file holds the state of an optimizer but no weights of a network: {names}"
    entries = ", ".join(map(repr, (*EMA_ENTRIES, *ONLINE_ENTRIES)))
    return f"the file holds no weights at its top or under {entries}; it holds {names}"
