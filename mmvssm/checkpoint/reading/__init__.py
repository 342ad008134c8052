"""Reading checkpoint files without running anything that stands in them."""

from .errors import CheckpointError, HostileFileError
from .files import Checkpoint, read_checkpoint
from .references import Inert

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "HostileFileError",
    "Inert",
    "read_checkpoint",
]
