"""Bidirectional renaming rules for keys, from a project's files to our models and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache

#: Whether a rule applies to one of our keys; the second argument is the set of all our keys.
Condition = Callable[[str, Collection[str]], bool]
#: Regular expressions of placeholders; all others match numbers.
PLACEHOLDERS = {"parameter": "weight|bias", "level": r"\w+"}


@dataclass(frozen=True)
class Rewrite:
    """A renaming step. A family applies its steps in order, or in reverse to restore names.

    Attributes:
        to_ours: Function of a key that returns our name, the unchanged key, or None if our models
            do not use it.
        to_original: Function of a key as the previous steps left it, our name and all our names. It
            returns the original name, the unchanged key, or None if there is no original.
    """

    to_ours: Callable[[str], str | None]
    to_original: Callable[[str, str, Collection[str]], str | None]


@dataclass(frozen=True)
class Rename:
    """A pair of equivalent names, the original and ours.

    A name that begins with a dot matches anywhere in a key, others match at its beginning. A name
    that ends with a dot may be followed by more, others must end the key. ``{i}`` matches a number;
    see :data:`PLACEHOLDERS`. If our name ends in ``@i``, the original is part ``i`` of our tensor.

    Attributes:
        original: Name in the project's files; None if they have no counterpart.
        ours: Our name; None if our models do not use it.
        back_if: Condition on our keys under which they get the original name, if several original
            names map to ours.
    """

    original: str | None
    ours: str | None
    back_if: Condition | None = None

    def to_ours(self, key: str) -> str | None:
        """See :class:`Rewrite`."""
        return key if self.original is None else _replace(key, self.original, self.ours)

    def to_original(self, key: str, ours: str, keys: Collection[str]) -> str | None:
        """See :class:`Rewrite`."""
        if self.ours is None or (self.back_if is not None and not self.back_if(ours, keys)):
            return key
        return _replace(key, self.ours, self.original)


#: A step of renaming.
Rule = Rename | Rewrite


def has(module: str, name: str) -> Condition:
    """Return the condition that the module of a key, such as ``'.blocks.{j}.'``, has a tensor."""

    def condition(ours: str, keys: Collection[str]) -> bool:
        match = pattern(module).search(ours)
        return match is not None and ours[: match.end()] + name in keys

    return condition


def lacks(module: str, name: str) -> Condition:
    """Return the opposite condition of :func:`has`."""
    has_name = has(module, name)
    return lambda ours, keys: not has_name(ours, keys)


@cache
def pattern(name: str) -> re.Pattern:
    """Compile the regular expression for a name of :class:`Rename`."""
    texts = re.split(r"\{(\w+)\}", name)
    for i, text in enumerate(texts):
        texts[i] = f"(?P<{text}>{PLACEHOLDERS.get(text, r'[0-9]+')})" if i % 2 else re.escape(text)
    start, end = "" if name.startswith(".") else "^", "" if name.endswith(".") else "$"
    return re.compile(start + "".join(texts) + end)


def _replace(key: str, name: str, other: str | None) -> str | None:
    if other is None:
        return None if pattern(name).search(key) else key
    return pattern(name).sub(re.sub(r"\{(\w+)\}", r"\\g<\1>", other), key)
