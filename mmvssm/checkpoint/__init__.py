"""Checkpoint files: reading them safely, finding what they hold, converting and writing them."""

from .arch import Found, find_arch, find_family
from .key_map import KEY_MAPS, map_key, map_state_dict, split_part
from .reading import read_checkpoint, weights_of
from .weights import Weights, find_weights, select_weights
from .writing import place_of, write_checkpoint

__all__ = [
    "KEY_MAPS",
    "Found",
    "Weights",
    "find_arch",
    "find_family",
    "find_weights",
    "map_key",
    "map_state_dict",
    "place_of",
    "read_checkpoint",
    "select_weights",
    "split_part",
    "weights_of",
    "write_checkpoint",
]
