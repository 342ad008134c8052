"""Checks of constructor arguments: messages name the argument, what was given and what is right."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any


def one_of(name: str, value: Any, choices: Iterable[Any]) -> Any:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        ValueError: If it is not; the message lists the choices.
    """
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def known_fields(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Check that every field of a dict argument is known.

    Raises:
        ValueError: If one is not; the message lists the known fields.
    """
    known = list(known)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f"{name} has unknown field(s) {', '.join(map(repr, unknown))}; "
            f"known are {', '.join(known)}"
        )


def known_arguments(name: str, given: Iterable[str], function: Callable) -> None:
    """Check that a dict holds only arguments of a class or function, its first one left out.

    Raises:
        ValueError: If it does not; the message lists the arguments.
    """
    known_fields(name, given, list(inspect.signature(function).parameters)[1:])
