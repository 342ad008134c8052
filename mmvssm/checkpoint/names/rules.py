"""Rules of key names that are read both ways: from the files of a project to ours, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from typing import Protocol

#: Whether a rule holds for a key of ours; the second argument are all keys of ours.
Condition = Callable[[str, Collection[str]], bool]
#: What placeholders stand for; all others are numbers.
PLACEHOLDERS = {"parameter": "weight|bias", "level": r"\w+"}


class Rule(Protocol):
    """One step of renaming; the steps of a family follow one another, and back in reverse."""

    def forward(self, key: str) -> str | None:
        """Our name, or the key unchanged; None for a key that we have no use for."""

    def back(self, key: str, ours: str, keys: Collection[str]) -> str | None:
        """Their name, or the key unchanged; None for a key that their models do not have.

        Args:
            key: The name as the steps before left it.
            ours: Our name.
            keys: All our names.
        """


@dataclass(frozen=True)
class Rename:
    """Two names of one thing.

    A name that begins with a dot may stand anywhere in a key, others at its beginning; one that
    ends with a dot may be followed by more, others end the key. ``{i}`` stands for a number, see
    :data:`PLACEHOLDERS`. A name of ours that ends in ``@i`` is part ``i`` of one tensor.

    Attributes:
        theirs: Name in their files; None if they have no such thing.
        ours: Our name; None if we have no use for it.
        back_if: Which of our keys have this name of theirs, where one of ours stands for several.
    """

    theirs: str | None
    ours: str | None
    back_if: Condition | None = None

    def forward(self, key: str) -> str | None:
        """See :class:`Rule`."""
        return key if self.theirs is None else _replace(key, self.theirs, self.ours)

    def back(self, key: str, ours: str, keys: Collection[str]) -> str | None:
        """See :class:`Rule`."""
        if self.ours is None or (self.back_if is not None and not self.back_if(ours, keys)):
            return key
        return _replace(key, self.ours, self.theirs)


@dataclass(frozen=True)
class Rewrite:
    """A step that functions describe, for what depends on more than names.

    Attributes:
        theirs_to_ours: See :meth:`Rule.forward`.
        ours_to_theirs: See :meth:`Rule.back`.
    """

    theirs_to_ours: Callable[[str], str]
    ours_to_theirs: Callable[[str, str, Collection[str]], str]

    def forward(self, key: str) -> str:
        """See :class:`Rule`."""
        return self.theirs_to_ours(key)

    def back(self, key: str, ours: str, keys: Collection[str]) -> str:
        """See :class:`Rule`."""
        return self.ours_to_theirs(key, ours, keys)


def has(module: str, name: str) -> Condition:
    """The condition that the module around a key has ``name``, too.

    Args:
        module: The module's name as in :class:`Rename`, such as ``'.blocks.{j}.'``.
        name: Name of a tensor in it.
    """

    def condition(ours: str, keys: Collection[str]) -> bool:
        match = pattern(module).search(ours)
        return match is not None and ours[: match.end()] + name in keys

    return condition


def lacks(module: str, name: str) -> Condition:
    """The opposite of :func:`has`."""
    has_name = has(module, name)
    return lambda ours, keys: not has_name(ours, keys)


@cache
def pattern(name: str) -> re.Pattern:
    """The expression for a name of :class:`Rename`."""
    texts = re.split(r"\{(\w+)\}", name)
    for i, text in enumerate(texts):
        texts[i] = f"(?P<{text}>{PLACEHOLDERS.get(text, r'[0-9]+')})" if i % 2 else re.escape(text)
    start, end = "" if name.startswith(".") else "^", "" if name.endswith(".") else "$"
    return re.compile(start + "".join(texts) + end)


def _replace(key: str, name: str, other: str | None) -> str | None:
    if other is None:
        return None if pattern(name).search(key) else key
    return pattern(name).sub(re.sub(r"\{(\w+)\}", r"\\g<\1>", other), key)
