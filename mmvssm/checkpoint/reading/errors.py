"""What is wrong with checkpoint files."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A file is no checkpoint, is damaged, or does not hold what is asked for."""


class HostileFileError(CheckpointError):
    """A file asks to run code when it is loaded; nothing of it was run."""
