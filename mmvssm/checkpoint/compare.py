"""The strict comparison of weights with those that a model needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from mmvssm.messages import join_names


class Differences(NamedTuple):
    """Keys that are given but not wanted, wanted but not given, and of another shape or type."""

    left_over: tuple[str, ...]
    missing: tuple[str, ...]
    changed: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of keys that differ."""
        return sum(map(len, self))

    def __str__(self) -> str:
        titles = ("left over", "missing", "of another shape or type")
        parts = [
            f"{len(keys)} {title}: {join_names(keys)}" for title, keys in zip(titles, self) if keys
        ]
        return "; ".join(parts) or "no difference"


def compare(
    given: Mapping[str, Tensor | Sequence[int]], wanted: Mapping[str, Tensor | Sequence[int]]
) -> Differences:
    """Compare keys and shapes; of tensors also whether their numbers are floating or integers.

    Args:
        given: Weights, or their shapes.
        wanted: Weights, or their shapes, of the model that they are for.
    """
    both = [(key, _describe(given[key]), _describe(wanted[key])) for key in wanted if key in given]
    return Differences(
        tuple(key for key in given if key not in wanted),
        tuple(key for key in wanted if key not in given),
        tuple(f"{key} {got} instead of {want}" for key, got, want in both if got != want),
    )


def shapes_of(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return shapes by key."""
    return {key: tuple(value.shape) for key, value in state_dict.items()}


def _describe(value: Tensor | Sequence[int]) -> str:
    """Write a shape, and the type of integers; shapes alone are those of floating numbers."""
    if not isinstance(value, Tensor) or value.is_floating_point():
        return str(tuple(value.shape if isinstance(value, Tensor) else value))
    return f"{tuple(value.shape)} of {str(value.dtype)[6:]}"
