"""Selection of a checkpoint's weights: as trained, or their moving average (EMA)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from mmvssm.messages import join_names, printable

from .reading.unpickler import Inert, kind_of

#: Entries of files with moving averages, and with the trained weights ("online").
EMA_ENTRIES = ("model_ema", "ema_model", "state_dict_ema")
ONLINE_ENTRIES = ("model", "state_dict")
KINDS = ("ema", "online")
#: Prefixes that parallel training, averaging and compilation add to names.
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")
#: Counter of updates in torch's ``AveragedModel``.
AVERAGED = "n_averaged"
#: Counters that profilers and averages leave among the weights.
COUNTERS = re.compile(rf"(^|\.)total_(ops|params)$|^{AVERAGED}$")
#: First names of a backbone, after a prefix that other training code may have added.
_BACKBONE = re.compile(
    r"((?:\w+\.)*?)(?:backbone\.)?(?:net\.)?(?:patch_embed|layers\.0|stages\.0)\."
)


@dataclass(frozen=True)
class Weights:
    """Weights of a checkpoint.

    Attributes:
        kind: ``'ema'`` (averages) or ``'online'`` (as trained).
        place: Where they are in the file, for messages.
        entry: The entry of the file.
        prefix: Prefix that other code has added to all names of the network, such as ``model.``.
    """

    kind: str
    place: str
    entry: Any = field(repr=False)
    prefix: str = ""

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Tensors by name, without counters, wrappers such as ``module.``, and :attr:`prefix`.

        Tensors without the prefix are omitted.
        """
        found = _tensors(self.entry)
        entry = self.entry if isinstance(self.entry, Mapping) else {}
        if unread := [name for name, value in entry.items() if isinstance(value, Inert)]:
            raise ValueError(f"{self.place} holds more than tensors: {join_names(unread)}")
        plain: dict[str, Tensor] = {}
        for name, value in found.items():
            short = WRAPPERS.sub("", name)
            if not short.startswith(self.prefix):
                continue
            short = short.removeprefix(self.prefix)
            if short in plain:
                raise ValueError(
                    f"{self.place} holds {printable(short)} twice, with and without 'module.'"
                )
            if not COUNTERS.search(short):
                plain[short] = value
        if not plain:
            raise ValueError(f"{self.place} holds only counters, no weights: {join_names(found)}")
        return plain


def behind_prefix(weights: Weights) -> Weights:
    """Return weights without the prefix of the backbone and its heads.

    Raises:
        ValueError: If there are several backbones with different prefixes.
    """
    matches = (_BACKBONE.match(WRAPPERS.sub("", name)) for name in _tensors(weights.entry))
    found = {match[1] for match in matches if match}
    if len(found) > 1 and "" not in found:
        raise ValueError(
            f"{weights.place} holds several networks, with prefixes {join_names(sorted(found))}"
        )
    return replace(weights, prefix=found.pop()) if len(found) == 1 else weights


def find_weights(checkpoint: Mapping[str, Any]) -> list[Weights]:
    """List all weights in a checkpoint, moving averages first.

    In a file of MMEngine's ``EMAHook``, ``state_dict`` holds the *averages*, so that a plain test
    evaluates them, and ``ema_state_dict`` the trained weights.
    """
    return sorted(_entries(checkpoint), key=lambda found: KINDS.index(found.kind))


def _entries(checkpoint: Mapping[str, Any]) -> Iterator[Weights]:
    averaged = checkpoint.get("ema_state_dict")
    if isinstance(averaged, Mapping) and "steps" in averaged and "state_dict" in checkpoint:
        yield Weights("ema", "'state_dict' (saved by EMAHook)", checkpoint["state_dict"])
        online = {k: v for k, v in averaged.items() if k != "steps"}  # a counter of updates
        yield Weights("online", "'ema_state_dict' (saved by EMAHook)", online)
        return
    said = own_meta(checkpoint).get("weights")
    known = said if said in KINDS else "online"
    places = [("ema", entry) for entry in (*EMA_ENTRIES, "ema_state_dict")]
    places += [(known, entry) for entry in ONLINE_ENTRIES]
    found = [(kind, entry) for kind, entry in places if _tensors(checkpoint.get(entry))]
    if len(found) > 1:
        yield from (Weights(kind, repr(entry), checkpoint[entry]) for kind, entry in found)
    elif found:
        kind, entry = found[0]
        yield _only_weights(kind, repr(entry), checkpoint[entry], entry == "state_dict")
    elif tensors := _tensors(checkpoint):  # the file may hold other values as well
        yield _only_weights(known, "the top of the file", tensors, True)


def own_meta(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the description that our own files store of their weights; empty for other files."""
    meta = checkpoint.get("meta")
    own = meta.get("mmvssm") if isinstance(meta, Mapping) else None
    return own if isinstance(own, Mapping) else {}


def _tensors(entry: Any) -> dict[str, Tensor]:
    if isinstance(entry, nn.Module):  # a pickled network of a trusted file
        entry = entry.state_dict()
    items = entry.items() if isinstance(entry, Mapping) else ()
    return {k: v for k, v in items if isinstance(k, str) and isinstance(v, Tensor)}


def _only_weights(kind: str, place: str, entry: Any, is_release: bool) -> Weights:
    """Return the only weights of a file, which may be averages under any entry."""
    names = _tensors(entry)
    if any(WRAPPERS.sub("", name) == AVERAGED for name in names):
        return Weights("ema", f"{place} (saved by torch's AveragedModel)", entry)
    # saved by an averaging wrapper around a parallel model
    if is_release and kind == "online" and all(name.startswith("module.module.") for name in names):
        return Weights("ema", f"{place} (by their prefix module.module.)", entry)
    return Weights(kind, place, entry)


def select_weights(checkpoint: Mapping[str, Any], kind: str = "auto") -> Weights:
    """Return the weights of one kind; ``'auto'`` prefers averages.

    Raises:
        ValueError: If the file has no such weights; the message lists those that it has.
    """
    if kind not in (*KINDS, "auto"):
        raise ValueError(f"weights must be auto, {' or '.join(KINDS)}, got {kind!r}")
    found = find_weights(checkpoint)
    unread = {}
    for entry in (*EMA_ENTRIES, *ONLINE_ENTRIES):
        value = checkpoint.get(entry)
        if value and isinstance(value, Inert | Mapping) and not _tensors(value):
            is_dict = isinstance(value, Mapping)
            unread[entry] = "a dict without tensors" if is_dict else kind_of(value)
    if not found:
        raise ValueError(_nothing_found(checkpoint, unread))
    # falling back silently to the other kind would not be what was asked for
    lost = [entry for entry in EMA_ENTRIES if entry in unread]
    if lost and kind != "online":
        reason = f"{lost[0]!r} holds {unread[lost[0]]} in place of tensors"
        raise ValueError(f"{reason}{_instead('online')}")
    for weights in found:
        if kind in ("auto", weights.kind):
            others = [other.kind for other in found if other.kind != weights.kind]
            try:
                weights.tensors  # noqa: B018
            except ValueError as error:
                raise ValueError(f"{error}{_instead(others[0]) if others else ''}") from None
            return weights
    there = ", ".join(f"{weights.kind} weights in {weights.place}" for weights in found)
    raise ValueError(f"the file has no {kind} weights; it has {there}")


def _instead(kind: str) -> str:
    return f"; or use the {kind} weights (tools/convert_ema.py --weights {kind})"


def _nothing_found(checkpoint: Mapping[str, Any], unread: Mapping[str, str]) -> str:
    names = join_names(list(checkpoint)) or "nothing"
    if "param_groups" in checkpoint or "optimizer" in checkpoint:
        return f"the file holds the state of an optimizer but no weights of a network: {names}"
    if unread:
        words = ", ".join(f"{entry!r} holds {kind}" for entry, kind in unread.items())
        return f"the file holds no weights: {words}, not a dict of tensors by name"
    entries = ", ".join(map(repr, (*EMA_ENTRIES, *ONLINE_ENTRIES)))
    return f"the file holds no weights at its top or under {entries}; it holds {names}"
