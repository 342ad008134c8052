"""Texts and names from files, made fit for messages."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

#: How many names a message lists.
MOST = 8


def printable(text: object, limit: int = 80) -> str:
    """Return ``text`` in ASCII, without control characters, shortened to ``limit``."""
    text = str(text)
    return ascii(text if len(text) <= limit else f"{text[: limit - 3]}...")[1:-1]


def join_names(names: Collection[object], most: int = MOST) -> str:
    """List the first of the names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(name, 200) for name in islice(names, most)) + rest


def brief(error: BaseException) -> str:
    """Return the first line of an error in brackets."""
    words = str(error).split("\n", 1)[0]
    if isinstance(error, SystemExit):
        words = f"it ends with sys.exit({error.code!r})"
    return f" ({words or type(error).__name__})"
