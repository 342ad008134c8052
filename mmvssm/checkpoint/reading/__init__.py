"""Reading checkpoint files without running any code in them."""

from .allowlist import CheckpointError, HostileFileError, Inert
from .read import Checkpoint, read_checkpoint

__all__ = ["Checkpoint", "CheckpointError", "HostileFileError", "Inert", "read_checkpoint"]
