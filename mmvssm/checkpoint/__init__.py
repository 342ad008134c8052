"""Checkpoint files: reading them, and names of released ones' parameters in terms of ours."""

from .key_map import KEY_MAPS, map_key, map_state_dict, split_part
from .reading import read_checkpoint, weights_of

__all__ = [
    "KEY_MAPS",
    "map_key",
    "map_state_dict",
    "read_checkpoint",
    "split_part",
    "weights_of",
]
