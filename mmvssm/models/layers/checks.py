"""Checks of constructor arguments: messages name the argument, what was given and what is right."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
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


def known_fields(name: str, given: Mapping, known: Iterable[str]) -> None:
    """Check that an argument is a dict whose every field is known.

    Raises:
        ValueError: If it is not; the message lists the known fields.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} must be a dict, got {given!r}")
    known = list(known)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f"{name} has unknown field(s) {', '.join(map(repr, unknown))}; "
            f"known are {', '.join(known)}"
        )


def at_least(least: int, **values: int) -> None:
    """Check that arguments are whole numbers of at least ``least``.

    Raises:
        ValueError: If one is not; the message names it.
    """
    for name, value in values.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def known_arguments(name: str, given: Mapping, function: Callable) -> None:
    """Check that a dict holds only arguments of a class or function, its first one left out.

    Raises:
        ValueError: If it is no dict, or does not; then the message lists the arguments.
    """
    known_fields(name, given, list(inspect.signature(function).parameters)[1:])


def complete_arch(
    arch: str | Mapping, settings: Mapping[str, dict], defaults: dict, required: Iterable[str]
) -> dict:
    """The fields of an ``arch`` argument, checked and completed with their defaults.

    Args:
        arch: A name of ``settings``, or a dict of fields.
        settings: Fields by name of the variant.
        defaults: Default of every field.
        required: Fields without which nothing can be built.

    Raises:
        ValueError: If ``arch`` is neither, or has an unknown field, or lacks a required one.
    """
    if isinstance(arch, str):
        arch = settings[one_of("arch", arch, settings)]
    if not isinstance(arch, Mapping):
        raise ValueError(f"arch must be a name or a dict, got {type(arch).__name__}")
    known_fields("arch", arch, defaults)
    for name in required:
        if arch.get(name) is None:
            raise ValueError(f"arch needs the field {name!r}, got only {', '.join(arch)}")
    return {**defaults, **arch}
