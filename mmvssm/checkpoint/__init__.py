"""Names of released checkpoints' parameters in terms of ours."""

from .key_map import KEY_MAPS, map_key, map_state_dict, split_part

__all__ = ["KEY_MAPS", "map_key", "map_state_dict", "split_part"]
