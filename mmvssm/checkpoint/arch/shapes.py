"""Shapes of weights by key: questions about them, and comparisons."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from ..messages import join_names

_BLOCK = re.compile(r"layers\.\d+\.|stages\.\d+\.blocks\.\d+\.")


class Unreadable(ValueError):
    """Shapes are not those of the family's networks."""


class Shapes:
    """Shapes of a backbone's weights, and questions about them.

    Attributes:
        shapes: Shapes by key.
        blocks: Prefixes of the keys of blocks or layers, each once.

    Args:
        shapes: Shapes by key, without the prefix ``backbone.``.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self.shapes = {key: tuple(shape) for key, shape in shapes.items()}
        matches = map(_BLOCK.match, self.shapes)
        self.blocks = tuple(dict.fromkeys(match.group() for match in matches if match))

    def __contains__(self, key: str) -> bool:
        return key in self.shapes

    def dim(self, key: str, axis: int) -> int:
        """Length of an axis.

        Raises:
            Unreadable: If there is no such tensor or axis, or it is empty.
        """
        shape = self.shapes.get(key, ())
        if axis >= len(shape) or shape[axis] < 1:
            raise Unreadable(f"{key!r} has no axis {axis} that is longer than 0")
        return shape[axis]

    def numbers(self, pattern: str) -> tuple[int, ...]:
        """What the group of ``pattern``, a number, is in the keys that it matches; ascending."""
        matches = (re.match(pattern, key) for key in self.shapes)
        return tuple(sorted({int(match.group(1)) for match in matches if match}))

    def any(self, pattern: str) -> bool:
        """Whether the pattern is found in a key."""
        return any(re.search(pattern, key) for key in self.shapes)

    def having(self, name: str) -> list[str]:
        """Prefixes of the blocks or layers that have a tensor of this name."""
        return [block for block in self.blocks if block + name in self.shapes]


def ratio(pairs: Sequence[tuple[int, int]], default: float) -> float:
    """The plainest ratio ``r`` with ``int(r * width) == wide`` for all ``(width, wide)``.

    Raises:
        Unreadable: If there is none.
    """
    low = max(Fraction(wide, width) for width, wide in pairs)
    high = min(Fraction(wide + 1, width) for width, wide in pairs)
    plain = [math.ceil(low * q) / q for q in range(1, 65)]
    for value in (default, *plain, float((low + high) / 2)):
        if all(int(value * width) == wide for width, wide in pairs):
            return value
    wanted = [f"{wide} of {width}" for width, wide in dict.fromkeys(pairs)]
    raise Unreadable(f"no one ratio makes {join_names(wanted)}")


@dataclass(frozen=True)
class Differences:
    """Where given weights differ from wanted ones; false where they do not.

    Attributes:
        left_over: Keys that are not wanted.
        missing: Keys that are not given.
        changed: Keys of another shape or kind of numbers, with what both are.
    """

    left_over: tuple[str, ...]
    missing: tuple[str, ...]
    changed: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.left_over) + len(self.missing) + len(self.changed)

    def __str__(self) -> str:
        titles = ("left over", "missing", "of another shape or type")
        parts = [
            f"{len(keys)} {title}: {join_names(keys)}"
            for title, keys in zip(titles, (self.left_over, self.missing, self.changed))
            if keys
        ]
        return "; ".join(parts) or "no difference"


def compare(
    given: Mapping[str, Tensor | Sequence[int]], wanted: Mapping[str, Tensor | Sequence[int]]
) -> Differences:
    """Compare keys and shapes; of tensors also the kind of numbers, floating or whole.

    Args:
        given: Weights, or their shapes.
        wanted: Weights, or their shapes, of the model that they are for.
    """
    both = [(key, given[key], wanted[key]) for key in wanted if key in given]
    return Differences(
        tuple(key for key in given if key not in wanted),
        tuple(key for key in wanted if key not in given),
        tuple(
            f"{key} {_words(got)} instead of {_words(want)}"
            for key, got, want in both
            if _shape(got) != _shape(want) or _is_floating(got) != _is_floating(want)
        ),
    )


def shapes_of(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by key."""
    return {key: tuple(value.shape) for key, value in state_dict.items()}


def _shape(value: Tensor | Sequence[int]) -> tuple[int, ...]:
    return tuple(value.shape if isinstance(value, Tensor) else value)


def _is_floating(value: Tensor | Sequence[int]) -> bool:
    """Bare shapes stand for floating numbers, as all weights but counters are."""
    return not isinstance(value, Tensor) or value.is_floating_point()


def _words(value: Tensor | Sequence[int]) -> str:
    words = str(_shape(value))
    return words if _is_floating(value) else f"{words} of {str(value.dtype)[6:]}"
