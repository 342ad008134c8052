"""Checks of the words that descriptions use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..compare import MalformedCase, UnsupportedCase

#: Our names of the values of ``v_reverse``.
OUTPUT_ORDERS = {"inverse": "inverse", "upstream": "upstream"}


def take(build: Mapping[str, Any], *required: str, **defaults: Any) -> dict[str, Any]:
    """Return options that have the same name here; KeyError if a required one is missing."""
    given = {name: build[name] for name in required}
    return given | {name: build.get(name, value) for name, value in defaults.items()}


def choice(build: Mapping[str, Any], name: str, choices: Mapping[str, Any], *default: str) -> Any:
    """Return our name of an option's value, which must be one of ``choices``."""
    value = build.get(name, *default) if default else build[name]
    if value not in choices:
        raise MalformedCase(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return choices[value]


def require(build: Mapping[str, Any], **built: Sequence[Any]) -> None:
    """Check options that are built in one form only, by all values that name it."""
    for name, values in built.items():
        if name in build and build[name] not in values:
            raise UnsupportedCase(f"{name} {build[name]!r}: only {values[0]!r} is built")


def read_dt_rank(build: Mapping[str, Any], dims: Sequence[int]) -> int | None:
    """Return one rank for all stages, or None for ``ceil(width / 16)``; ``dims`` are widths."""
    ranks = build.get("dt_rank")
    if isinstance(ranks, int):
        return ranks
    if ranks in (None, "auto") or ranks == [math.ceil(dim / 16) for dim in dims]:
        return None
    if len(set(ranks)) > 1:
        raise UnsupportedCase(
            f"dt_rank {ranks}: neither ceil(width / 16) nor one rank for all stages"
        )
    return ranks[0]
