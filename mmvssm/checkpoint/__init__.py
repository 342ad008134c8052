"""Checkpoint files: reading them safely, finding what they hold, converting and writing them."""

from .arch import Found, find_arch, find_family
from .contents import CONTENTS
from .convert import DTYPES, Converted, convert, restore, smoke_test
from .names import KEY_MAPS, map_key, map_state_dict, split_part, unmap_state_dict
from .reading import Checkpoint, CheckpointError, HostileFileError, read_checkpoint
from .weights import Weights, find_weights, select_weights
from .writing import output_path, write_checkpoint

__all__ = [
    "CONTENTS",
    "DTYPES",
    "KEY_MAPS",
    "Checkpoint",
    "CheckpointError",
    "Converted",
    "Found",
    "HostileFileError",
    "Weights",
    "convert",
    "find_arch",
    "find_family",
    "find_weights",
    "map_key",
    "map_state_dict",
    "output_path",
    "read_checkpoint",
    "restore",
    "select_weights",
    "smoke_test",
    "split_part",
    "unmap_state_dict",
    "write_checkpoint",
]
