"""Checkpoint files: safe reading, recognition, conversion and writing."""

# ruff: noqa: F401  re-exported

from mmvssm.families.key_map import KeyMap, map_key, map_state_dict, split_part
from mmvssm.families.recognise import MixedFamiliesError, UnknownFamilyError, find_family

from .arch import ArchError, Found, find_arch
from .convert import DTYPES, Converted, convert, to_original
from .heads import CONTENTS
from .reading import Checkpoint, CheckpointError, HostileFileError, read_checkpoint
from .weights import Weights, find_weights, select_weights
from .writing import write_checkpoint
