"""Plain values of pickles, made and checked without trust in what a file asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..messages import printable
from .errors import CheckpointError
from .references import Inert, Reference, hostile

#: More operations than the logs, options and optimizer states of any training have.
MAX_OPERATIONS = 5_000_000
#: Deeper values would overflow the stack of whatever walks through them.
MAX_DEPTH = 200
_MAX_KEY = 1 << 60  # smaller ints are their own hashes, so that a file cannot make keys collide


def damaged(what: str) -> CheckpointError:
    """The error for a pickle that does ``what`` none does."""
    return CheckpointError(f"is damaged: its pickle {what}")


def check_depth(value: Any) -> None:
    """Make sure that programs can walk through ``value``.

    Raises:
        CheckpointError: If it contains itself, if it is nested more than ``MAX_DEPTH`` deep, or
            if the same values stand in so many places that walking through it would not end.
    """
    # of values whose parts are done: their depth, and how many values a walk through them sees
    done: dict[int, tuple[int, int]] = {}
    path: list[tuple[Any, Iterator[Any], list[int]]] = []
    open_values: set[int] = set()

    def enter(container: Any) -> None:
        if len(path) == MAX_DEPTH or id(container) in open_values:
            raise CheckpointError(
                f"nests values more than {MAX_DEPTH} deep or within themselves, which no"
                " checkpoint does"
            )
        parts = container.values() if isinstance(container, dict) else container
        open_values.add(id(container))
        path.append((container, iter(parts), [1, 1]))

    if _is_container(value):
        enter(value)
    while path:
        container, parts, (depth, count) = path[-1]
        for part in parts:
            if not _is_container(part):
                count += 1
            elif id(part) in done:
                depth, count = max(depth, 1 + done[id(part)][0]), count + done[id(part)][1]
            else:
                path[-1][2][:] = depth, count
                enter(part)
                break
        else:
            path.pop()
            open_values.remove(id(container))
            done[id(container)] = depth, count
            if path:
                above = path[-1][2]
                above[:] = max(above[0], 1 + depth), above[1] + count
        if depth > MAX_DEPTH or count > MAX_OPERATIONS:
            raise CheckpointError(
                "repeats the same values more often or deeper than any checkpoint does"
            )


def kind_of(value: Any) -> str:
    """What ``value`` is, in words for a message."""
    if isinstance(value, Reference):
        return f"a reference to {printable(value.origin)}"
    if isinstance(value, Inert):
        return f"an object of {printable(value.origin)}"
    return f"a value of type {type(value).__name__}"


def as_key(key: Any) -> Any:
    """``key`` if it is plain; deep or colliding ones would hang or crash on hashing."""
    if key is None or isinstance(key, str | bytes | float):
        return key
    if isinstance(key, int) and -_MAX_KEY < key < _MAX_KEY:
        return key
    return Inert(f"builtins.{type(key).__name__}")


def get_attribute(owner: Any, name: Any, *_: Any) -> Any:
    """What stands for ``getattr``, by which methods and members of enumerations are stored."""
    if not isinstance(name, str):
        raise damaged("has a name that is no text")
    if isinstance(owner, Reference):  # dots in names are judged where they are made
        return Reference(owner.module, f"{owner.name}.{name}")
    if isinstance(owner, Inert):  # methods of objects, such as those of logs and schedules
        return Inert(f"{owner.origin}.{name}")
    raise hostile(f"run getattr on {kind_of(owner)}")


def make_complex(*arguments: Any) -> Any:
    """What stands for ``complex``."""
    if len(arguments) == 2 and all(isinstance(part, float) for part in arguments):
        return complex(*arguments)
    return Inert("builtins.complex")


def make_size(sizes: Any = ()) -> Any:
    """What stands for ``torch.Size``."""
    if isinstance(sizes, tuple | list) and all(
        type(size) is int and 0 <= size < 1 << 63 for size in sizes
    ):
        return torch.Size(sizes)
    return Inert("torch.Size")


def make_device(kind: Any = None, index: Any = None) -> Any:
    """What stands for ``torch.device``."""
    name = kind if index is None else f"{kind}:{index}"
    if isinstance(kind, str) and (index is None or type(index) is int):
        try:
            return torch.device(name)
        except RuntimeError:  # of a kind that this torch does not know
            pass
    return Inert("torch.device")


def _is_container(value: Any) -> bool:
    return type(value) in (dict, list, tuple)
