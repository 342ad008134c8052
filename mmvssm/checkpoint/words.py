"""Names from files in messages."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

#: How many names a message lists.
MANY = 8


def shown(text: object, limit: int = 80) -> str:
    """``text`` from a file for a message: in ASCII, without control characters, not long."""
    text = str(text)
    return ascii(text if len(text) <= limit else f"{text[: limit - 3]}...")[1:-1]


def some(names: Collection[object], many: int = MANY) -> str:
    """The first of the names, and how many more there are."""
    rest = f" and {len(names) - many} more" if len(names) > many else ""
    return ", ".join(shown(name, 200) for name in islice(names, many)) + rest
