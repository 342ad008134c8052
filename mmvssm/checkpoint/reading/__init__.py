"""Reading checkpoint files without running any code in them."""

from .errors import CheckpointError, HostileFileError
from .read import Checkpoint, read_checkpoint
from .unpickler import Inert

__all__ = ["Checkpoint", "CheckpointError", "HostileFileError", "Inert", "read_checkpoint"]
