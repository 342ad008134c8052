"""What is wrong with checkpoint files."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A file is no checkpoint, is damaged, or does not hold what is asked for."""


class HostileFileError(CheckpointError):
    """A file asks to run code when it is loaded; nothing of it was run."""


def shown(text: object, limit: int = 80) -> str:
    """``text`` from a file for a message: in ASCII, without control characters, not long."""
    text = str(text)
    return ascii(text if len(text) <= limit else f"{text[: limit - 3]}...")[1:-1]
