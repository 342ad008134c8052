"""Checks of constructor arguments. Errors name the argument, its value and what is allowed."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor


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
    """Check that an argument is a dict without unknown fields.

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
            f"known fields are {', '.join(known)}"
        )


def at_least(least: int, **values: int) -> None:
    """Check that arguments are whole numbers of at least ``least``.

    Raises:
        ValueError: If one is not; the message names it.
    """
    for name, value in values.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def known_arguments(name: str, given: Mapping, cls: type, fixed: Iterable[str] = ()) -> None:
    """Check that a dict holds only arguments of a layer.

    Args:
        name: Name of the dict.
        given: The dict.
        cls: The layer's class, whose first argument is never in the dict.
        fixed: Further arguments that must not be in it.

    Raises:
        ValueError: If it is not a dict or has other keys; the message lists the arguments.
    """
    arguments = list(inspect.signature(cls).parameters)[1:]
    known_fields(name, given, [argument for argument in arguments if argument not in fixed])


def complete_arch(
    arch: str | Mapping, settings: Mapping[str, dict], defaults: dict, required: Iterable[str]
) -> dict:
    """Return the fields of an ``arch`` argument, checked and with defaults filled in.

    Args:
        arch: A name of ``settings``, or a dict of fields.
        settings: Fields by name of the variant.
        defaults: Default of every field.
        required: Fields that must be given.

    Raises:
        ValueError: If ``arch`` is neither, has an unknown field or lacks a required one.
    """
    if isinstance(arch, str):
        arch = settings[one_of("arch", arch, settings)]
    if not isinstance(arch, Mapping):
        raise ValueError(f"arch must be a name or a dict, got {type(arch).__name__}")
    known_fields("arch", arch, defaults)
    for name in required:
        if arch.get(name) is None:
            raise ValueError(f"arch must have the field {name!r}, got only {', '.join(arch)}")
    return {**defaults, **arch}


def read_indices(
    out_indices: int | Sequence[int], count: int, what: str, negative: bool = False
) -> tuple[int, ...]:
    """Return ``out_indices`` as a tuple of non-negative indices.

    Args:
        out_indices: One index or a sequence of them.
        count: Number of stages or layers to choose from.
        what: Name of what they index, for messages.
        negative: Whether negative indices count from the end.

    Raises:
        ValueError: If there is no index, or one is out of range.
    """
    given = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    allowed = range(-count if negative else 0, count)
    if not given or any(i not in allowed for i in given):
        raise ValueError(
            f"out_indices must hold {what} {allowed[0]} to {allowed[-1]}, got {out_indices}"
        )
    return tuple(i % count for i in given)


def check_images(x: Tensor, in_channels: int, min_size: int, reason: str) -> None:
    """Raise ValueError unless ``x`` is ``(B, in_channels, H, W)`` with sides >= ``min_size``."""
    if x.dim() != 4 or x.shape[1] != in_channels:
        raise ValueError(f"x must be (B, {in_channels}, H, W), got {tuple(x.shape)}")
    height, width = x.shape[2:]
    if min(height, width) < min_size:
        raise ValueError(
            f"x must be at least {min_size}x{min_size} pixels, {reason}, got {height}x{width}"
        )
