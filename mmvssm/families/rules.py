"""Rules of key names that are read both ways: from a project's files to ours, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache

#: Whether a rule holds for one of our keys; the second argument are all our keys.
Condition = Callable[[str, Collection[str]], bool]
#: What placeholders match; all others match numbers.
PLACEHOLDERS = {"parameter": "weight|bias", "level": r"\w+"}


@dataclass(frozen=True)
class Rewrite:
    """A step of renaming; a family applies its steps in order, and in reverse to go back.

    Attributes:
        to_ours: Maps a key to our name, or to itself; to None if our models do not use it.
        to_original: Maps a key as the steps before left it, our name and all our names to the
            original name, or to the key; to None if there is no original.
    """

    to_ours: Callable[[str], str | None]
    to_original: Callable[[str, str, Collection[str]], str | None]


@dataclass(frozen=True)
class Rename:
    """Two names of one thing.

    A name that begins with a dot matches anywhere in a key, others at its beginning; one that
    ends with a dot may be followed by more, others end the key. ``{i}`` matches a number, see
    :data:`PLACEHOLDERS`. One of our names that ends in ``@i`` is part ``i`` of a tensor.

    Attributes:
        original: Name in the project's files; None if they have no such thing.
        ours: Our name; None if our models do not use it.
        back_if: Which of our keys get the original name, where several originals have our name.
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
    """Return the condition that the module of a key, as ``'.blocks.{j}.'``, has a tensor."""

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
    """Compile the expression for a name of :class:`Rename`."""
    texts = re.split(r"\{(\w+)\}", name)
    for i, text in enumerate(texts):
        texts[i] = f"(?P<{text}>{PLACEHOLDERS.get(text, r'[0-9]+')})" if i % 2 else re.escape(text)
    start, end = "" if name.startswith(".") else "^", "" if name.endswith(".") else "$"
    return re.compile(start + "".join(texts) + end)


def _replace(key: str, name: str, other: str | None) -> str | None:
    if other is None:
        return None if pattern(name).search(key) else key
    return pattern(name).sub(re.sub(r"\{(\w+)\}", r"\\g<\1>", other), key)
