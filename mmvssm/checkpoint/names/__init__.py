"""Names of weights: those of the original projects, ours, and the ways between them."""

from .families import KEY_MAPS, KeyMap
from .key_map import (
    NAMES,
    PREFIX,
    default_names,
    map_key,
    map_state_dict,
    release_names,
    split_part,
    unmap_state_dict,
    unused_keys,
)

__all__ = [
    "KEY_MAPS",
    "NAMES",
    "PREFIX",
    "KeyMap",
    "default_names",
    "map_key",
    "map_state_dict",
    "release_names",
    "split_part",
    "unmap_state_dict",
    "unused_keys",
]
