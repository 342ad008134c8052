"""Checkpoint files: reading them safely, recognising, converting and writing them."""

from mmvssm.families.key_map import KeyMap, map_key, map_state_dict, split_part

from .arch import ArchError, Found, find_arch
from .convert import DTYPES, Converted, convert, smoke_test, to_original
from .heads import CONTENTS
from .reading import Checkpoint, CheckpointError, HostileFileError, read_checkpoint
from .recognise import MixedFamiliesError, UnknownFamilyError, find_family
from .weights import Weights, find_weights, select_weights
from .writing import output_path, write_checkpoint

__all__ = [
    "CONTENTS",
    "DTYPES",
    "ArchError",
    "Checkpoint",
    "CheckpointError",
    "Converted",
    "Found",
    "HostileFileError",
    "KeyMap",
    "MixedFamiliesError",
    "UnknownFamilyError",
    "Weights",
    "convert",
    "find_arch",
    "find_family",
    "find_weights",
    "map_key",
    "map_state_dict",
    "output_path",
    "read_checkpoint",
    "select_weights",
    "smoke_test",
    "split_part",
    "to_original",
    "write_checkpoint",
]
