from mmvssm.families import FAMILIES as KEY_MAPS  # noqa: F401
from mmvssm.families import find_declared

from .rename import *
from .rename import NAMES, KeyMap
from .rename import release_names as _release_names


def unmap_state_dict(sd, family, task="classification", *, names="current"):
    return KeyMap(family, task).to_original(sd, names=names)


def unused_keys(keys, family, task, used):
    return KeyMap(family, task).unused(keys, used)


def default_names(family, arch):
    return NAMES[arch in find_declared(family).first_release_archs]


def release_names(keys, family):
    return _release_names(keys, find_declared(family))
