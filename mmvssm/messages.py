"""Formatting of text and names from files for messages."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

#: Largest number of names in a message.
MOST = 8


def printable(text: object, limit: int = 80) -> str:
    """Return ``text`` in ASCII, without control characters, shortened to ``limit``."""
    text = str(text)
    return ascii(text if len(text) <= limit else f"{text[: limit - 3]}...")[1:-1]


def join_names(names: Collection[object], most: int = MOST) -> str:
    """List the first ``most`` names, and the number of further ones."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(name, 200) for name in islice(names, most)) + rest


def brief(error: BaseException) -> str:
    """Return the first line of an error in parentheses."""
    words = str(error).split("\n", 1)[0]
    if isinstance(error, SystemExit):
        words = f"it ends with sys.exit({error.code!r})"
    return f" ({words or type(error).__name__})"
