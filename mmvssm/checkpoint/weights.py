"""Which weights of a checkpoint to take: those trained, or their moving average (EMA)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from mmvssm.messages import join_names, printable

from .reading.unpickler import Inert, kind_of

#: Where files keep moving averages, and where the trained weights themselves ("online").
EMA_ENTRIES = ("model_ema", "ema_model", "state_dict_ema")
ONLINE_ENTRIES = ("model", "state_dict")
KINDS = ("ema", "online")
#: What parallel training, averaging and compilation put before names.
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")
#: By what torch's ``AveragedModel`` counts its updates.
AVERAGED = "n_averaged"
#: Counters that profilers and averages leave among the weights.
COUNTERS = re.compile(rf"(^|\.)total_(ops|params)$|^{AVERAGED}$")
#: The first names of a backbone, and what training code of others may have put before them.
_BACKBONE = re.compile(
    r"((?:\w+\.)*?)(?:backbone\.)?(?:net\.)?(?:patch_embed|layers\.0|stages\.0)\."
)


@dataclass(frozen=True)
class Weights:
    """Weights of a checkpoint.

    Attributes:
        kind: ``'ema'`` (averages) or ``'online'`` (as trained).
        place: Where in the file they are, in words.
        entry: What is there.
        prefix: What code of others has put before all names of the network, such as ``model.``.
    """

    kind: str
    place: str
    entry: Any = field(repr=False)
    prefix: str = ""

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Tensors by name, without counters, wrappers such as ``module.``, and :attr:`prefix`.

        Those that are outside of the prefix are left out.
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
                raise ValueError(f"{self.place} holds {printable(short)} twice, see 'module.'")
            if not COUNTERS.search(short):
                plain[short] = value
        if not plain:
            raise ValueError(f"{self.place} holds no weights, but counters: {join_names(found)}")
        return plain


def behind_prefix(weights: Weights) -> Weights:
    """Return weights without what stands before the names of a backbone and its heads.

    Raises:
        ValueError: If several backbones are there, each behind its own.
    """
    matches = (_BACKBONE.match(WRAPPERS.sub("", name)) for name in _tensors(weights.entry))
    found = {match[1] for match in matches if match}
    if len(found) > 1 and "" not in found:
        raise ValueError(f"{weights.place} holds several networks, in {join_names(sorted(found))}")
    return replace(weights, prefix=found.pop()) if len(found) == 1 else weights


def find_weights(checkpoint: Mapping[str, Any]) -> list[Weights]:
    """List all weights in a checkpoint, moving averages first.

    A file that MMEngine's ``EMAHook`` has written holds the *averages* as ``state_dict``, so that a
    plain test evaluates them, and the trained weights as ``ema_state_dict``.
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
    elif tensors := _tensors(checkpoint):  # with them there may be options and the like
        yield _only_weights(known, "the top of the file", tensors, True)


def own_meta(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what one of our own files says of its weights; nothing for other files."""
    meta = checkpoint.get("meta")
    own = meta.get("mmvssm") if isinstance(meta, Mapping) else None
    return own if isinstance(own, Mapping) else {}


def _tensors(entry: Any) -> dict[str, Tensor]:
    if isinstance(entry, nn.Module):  # a pickled network of a trusted file
        entry = entry.state_dict()
    items = entry.items() if isinstance(entry, Mapping) else ()
    return {k: v for k, v in items if isinstance(k, str) and isinstance(v, Tensor)}


def _only_weights(kind: str, place: str, entry: Any, is_release: bool) -> Weights:
    """Return the only weights of a file, which may be averages whatever their entry is called."""
    names = _tensors(entry)
    if any(WRAPPERS.sub("", name) == AVERAGED for name in names):
        return Weights("ema", f"{place} (saved by torch's AveragedModel)", entry)
    # saved by an averaging wrapper around a parallel model
    if is_release and kind == "online" and all(name.startswith("module.module.") for name in names):
        return Weights("ema", f"{place} (by their prefix module.module.)", entry)
    return Weights(kind, place, entry)


def select_weights(checkpoint: Mapping[str, Any], kind: str = "auto") -> Weights:
    """Return the weights of one kind; ``'auto'`` takes averages where there are some.

    ValueError lists what there is if there are none.
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
    # to take the others in silence would not be what was asked for
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
    return f"; or take the {kind} weights (tools/convert_ema.py --weights {kind})"


def _nothing_found(checkpoint: Mapping[str, Any], unread: Mapping[str, str]) -> str:
    names = join_names(list(checkpoint)) or "nothing"
    if "param_groups" in checkpoint or "optimizer" in checkpoint:
        return f"the file holds the state of an optimizer but no weights of a network: {names}"
    if unread:
        words = ", ".join(f"{entry!r} holds {kind}" for entry, kind in unread.items())
        return f"the file holds no weights: {words}, no dict of tensors by name"
    entries = ", ".join(map(repr, (*EMA_ENTRIES, *ONLINE_ENTRIES)))
    return f"the file holds no weights at its top or under {entries}; it holds {names}"
