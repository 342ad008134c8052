"""From the key names of released checkpoints to those of our models.

Every family describes its names as data, a :class:`KeyMap`, in a file of its own;
the functions here apply it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .efficient_vmamba import EFFICIENT_VMAMBA_LINEAR, EFFICIENT_VMAMBA_TRUNK
from .local_vmamba import LOCAL_VMAMBA_TRUNK
from .msvmamba import MSVMAMBA_LINEAR, MSVMAMBA_TRUNK
from .vim import (
    LOCAL_VIM_TRUNK,
    PLAIN_CLASSIFICATION,
    PLAIN_DENSE,
    PLAIN_LINEAR,
    VIM_TRUNK,
)
from .vmamba import VMAMBA_CLASSIFICATION, VMAMBA_DENSE, VMAMBA_LINEAR, VMAMBA_TRUNK

TASKS = ("classification", "dense")
PREFIX = "backbone."
#: Beginnings of mapped keys that are not the backbone's.
OUTSIDE = ("head.", "neck.")

Replacement = str | Callable[[re.Match], str] | None
Rules = tuple[tuple[str, Replacement], ...]


@dataclass(frozen=True)
class KeyMap:
    """Rules of one family, each ``(regular expression, replacement)`` as :func:`re.sub` takes them.

    Attributes:
        trunk: Rules for the backbone's keys, applied one after the other.
        tasks: For each task further rules, for norms and head; a replacement of None
            drops the key, which only the other task has a use for. A name that ends in
            ``@i`` is part ``i`` of one tensor, which the file holds in parts.
        linear: Expression of the weights that files may hold as 1x1 convolutions.
        stacked: Expression of the tensors whose parts get a new first axis; the parts of others
            are joined along their first axis.
    """

    trunk: Rules
    tasks: Mapping[str, Rules]
    linear: str
    stacked: str = r"\.(x_proj_weight|dt_projs_weight|dt_projs_bias)$"


#: Key maps by family.
KEY_MAPS = {
    "vmamba": KeyMap(
        trunk=VMAMBA_TRUNK,
        tasks={"classification": VMAMBA_CLASSIFICATION, "dense": VMAMBA_DENSE},
        linear=VMAMBA_LINEAR,
    ),
    "efficient_vmamba": KeyMap(
        trunk=EFFICIENT_VMAMBA_TRUNK,
        tasks={"classification": VMAMBA_CLASSIFICATION, "dense": VMAMBA_DENSE},
        linear=EFFICIENT_VMAMBA_LINEAR,
    ),
    "local_vmamba": KeyMap(
        trunk=LOCAL_VMAMBA_TRUNK,
        tasks={"classification": VMAMBA_CLASSIFICATION, "dense": VMAMBA_DENSE},
        linear=VMAMBA_LINEAR,
    ),
    "msvmamba": KeyMap(
        trunk=MSVMAMBA_TRUNK,
        tasks={"classification": VMAMBA_CLASSIFICATION, "dense": VMAMBA_DENSE},
        linear=MSVMAMBA_LINEAR,
    ),
    "vim": KeyMap(
        trunk=VIM_TRUNK,
        tasks={"classification": PLAIN_CLASSIFICATION, "dense": PLAIN_DENSE},
        linear=PLAIN_LINEAR,
    ),
    "local_vim": KeyMap(
        trunk=LOCAL_VIM_TRUNK,
        tasks={"classification": PLAIN_CLASSIFICATION, "dense": PLAIN_DENSE},
        linear=PLAIN_LINEAR,
    ),
}


def map_key(key: str, family: str | KeyMap, task: str) -> str | None:
    """Our name for one key of a released checkpoint.

    Args:
        key: Key of a file of any release, without the prefix ``backbone.``.
        family: A key of :data:`KEY_MAPS`, or rules of a case of its own.
        task: ``'classification'`` (norm and head of the classifier) or ``'dense'`` (the
            norms of detection and segmentation).

    Returns:
        The key in a model with ``backbone`` and, for classification, ``head``; None for
        a key without place in a model of this task. Unknown keys keep their name, so
        that a strict load reports them. See :func:`split_part` for tensors in parts.

    Raises:
        ValueError: If family or task is unknown.
    """
    key_map = _find(family)
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    for pattern, replacement in (*key_map.trunk, *key_map.tasks[task]):
        if replacement is None:
            if re.search(pattern, key):
                return None
        else:
            key = re.sub(pattern, replacement, key)
    return key if key.startswith(OUTSIDE) else PREFIX + key


def _find(family: str | KeyMap) -> KeyMap:
    if isinstance(family, KeyMap):
        return family
    if family not in KEY_MAPS:
        raise ValueError(f"family must be one of {', '.join(KEY_MAPS)}, got {family!r}")
    return KEY_MAPS[family]


def split_part(key: str) -> tuple[str, int | None]:
    """Name of the tensor and number of the part for a key ``name@i``; None for a whole tensor."""
    name, _, part = key.partition("@")
    return name, int(part) if part else None


def map_state_dict(
    state_dict: Mapping[str, Tensor], family: str | KeyMap, task: str = "classification"
) -> dict[str, Tensor]:
    """Rename the entries of a released checkpoint, and give linear weights their two axes.

    In files of whole detectors and segmentors, where the backbone's keys begin with
    ``backbone.``, all other entries (necks, heads) pass unchanged.

    Args:
        state_dict: Weights as the file holds them.
        family: See :func:`map_key`.
        task: See :func:`map_key`.

    Returns:
        Entries for a model with ``backbone`` and, for classification, ``head``.

    Raises:
        ValueError: If family or task is unknown, two keys get one name, or a part is missing.
    """
    key_map = _find(family)
    is_whole_model = any(key.startswith(PREFIX) for key in state_dict)
    mapped: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for key, value in state_dict.items():
        name: str | None = key
        if not is_whole_model or key.startswith(PREFIX):
            name = map_key(key.removeprefix(PREFIX), key_map, task)
        if name is None:
            continue
        if name in mapped:
            raise ValueError(f"keys {sources[name]!r} and {key!r} both stand for {name!r}")
        if re.search(key_map.linear, name) and value.shape[2:] == (1, 1):
            value = value[..., 0, 0]
        mapped[name], sources[name] = value, key
    return _join_parts(mapped, key_map.stacked)


def _join_parts(mapped: dict[str, Tensor], stacked: str) -> dict[str, Tensor]:
    """Replace the entries ``name@i`` by one entry ``name``."""
    joined: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for key, value in mapped.items():
        name, part = split_part(key)
        if part is None:
            joined[name] = value
        else:
            parts.setdefault(name, {})[part] = value
    for name, values in parts.items():
        missing = sorted(set(range(max(values) + 1)) - values.keys())
        if missing:
            raise ValueError(f"{name!r} is incomplete: part(s) {missing} of it are missing")
        join = torch.stack if re.search(stacked, name) else torch.cat
        joined[name] = join([values[part] for part in sorted(values)])
    return joined
