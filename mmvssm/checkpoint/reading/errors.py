"""Errors of reading checkpoint files."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A file is no checkpoint, is damaged, or does not hold what is asked for."""


class HostileFileError(CheckpointError):
    """A file asks to run code when it is loaded; nothing of it was run."""


def damaged(reason: object) -> CheckpointError:
    """Make the error for damage."""
    return CheckpointError(f"is cut off or damaged ({reason}): download or copy it again")


def hostile(action: str) -> HostileFileError:
    """Make the error for a file that asks for ``action``."""
    return HostileFileError(
        f"asks to {action} when it is loaded; nothing was run; do not use this file"
    )
