"""Key names of released checkpoints in terms of those of our models, and the way back.

Every family describes its names as data, a :class:`KeyMap`; the functions here apply it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from ..words import shown, some
from .families import KEY_MAPS, KeyMap, Rules

TASKS = ("classification", "dense")
#: Names of two generations of the code of VMamba and of what was made from it.
NAMES = ("current", "first-release")
PREFIX = "backbone."
#: Beginnings of mapped keys that are not the backbone's.
OUTSIDE = ("head.", "neck.")
#: What a detector of a :attr:`KeyMap.detector` has in files of theirs, and in ours.
_DETECTOR_OF_THEIRS = "neck.fpn1.0.weight"
_DETECTOR_OF_OURS = "neck.levels.x4.deconv1.weight"


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
    for rule in (*key_map.first_release, *key_map.trunk, *_task_rules(key_map, task)):
        mapped = rule.forward(key)
        if mapped is None:
            return None
        key = mapped
    return key if key.startswith(OUTSIDE) else PREFIX + key


def _find(family: str | KeyMap) -> KeyMap:
    """The key map of a family; ValueError for an unknown one."""
    if isinstance(family, KeyMap):
        return family
    if family not in KEY_MAPS:
        raise ValueError(f"family must be one of {', '.join(KEY_MAPS)}, got {family!r}")
    return KEY_MAPS[family]


def _task_rules(key_map: KeyMap, task: str) -> Rules:
    """The rules of a task; ValueError for an unknown one."""
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    return key_map.tasks[task]


def _holds_backbone(keys: Iterable[str]) -> bool:
    """Whether keys are those of a whole model, the backbone's beginning with ``backbone.``."""
    return any(key.startswith(PREFIX) for key in keys)


def split_part(key: str) -> tuple[str, int | None]:
    """Name of the tensor and number of the part for a key ``name@i``; None for a whole tensor."""
    name, _, part = key.partition("@")
    return name, int(part) if part else None


def map_state_dict(
    state_dict: Mapping[str, Tensor], family: str | KeyMap, task: str = "classification"
) -> dict[str, Tensor]:
    """Rename the entries of a released checkpoint, and give linear weights their two axes.

    In files of whole detectors and segmentors, where the backbone's keys begin with
    ``backbone.``, all other entries (necks, heads) pass unchanged, except for those of a neck of
    the project's own.

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
    mapped: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for key, name in _our_names(state_dict, key_map, task):
        if name is None:
            continue
        value = state_dict[key]
        if name in mapped:
            raise ValueError(
                f"keys {shown(sources[name])} and {shown(key)} both stand for {shown(name)}: the"
                " file mixes two networks or namings of one, of which only one may stay"
            )
        if re.search(key_map.linear, name) and value.shape[2:] == (1, 1):
            value = value[..., 0, 0]
        mapped[name], sources[name] = value, key
    return _join_parts(mapped, key_map.stacked)


def unused_keys(
    keys: Collection[str], family: str | KeyMap, task: str, used: Collection[str]
) -> tuple[str, ...]:
    """Keys of a released checkpoint whose tensors are in none of ours.

    Args:
        keys: All keys of the file.
        family: See :func:`map_key`.
        task: See :func:`map_key`.
        used: Our names that were taken of what :func:`map_state_dict` gives.

    Raises:
        ValueError: If family or task is unknown.
    """
    names = _our_names(keys, _find(family), task)
    return tuple(key for key, name in names if name is None or split_part(name)[0] not in used)


def _our_names(
    keys: Collection[str], key_map: KeyMap, task: str
) -> Iterator[tuple[str, str | None]]:
    """All keys of a file with our names, of which there may be parts; None for none."""
    is_whole = _holds_backbone(keys)
    detector = key_map.detector if _DETECTOR_OF_THEIRS in keys else ()
    for key in keys:
        name: str | None = key
        if not is_whole or key.startswith(PREFIX):
            name = map_key(key.removeprefix(PREFIX), key_map, task)
        else:
            for rule in detector:
                name = rule.forward(name)
        yield key, name


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
        if max(values) >= len(values):
            missing = next(i for i in range(len(values)) if i not in values)
            raise ValueError(f"{shown(name)} is incomplete: part {missing} of it is missing")
        join = torch.stack if re.search(stacked, name) else torch.cat
        joined[name] = join([values[part] for part in sorted(values)])
    return joined


def release_names(keys: Iterable[str], family: str | KeyMap) -> str:
    """Which of :data:`NAMES` the keys of a released checkpoint are.

    Args:
        keys: All keys of the file.
        family: See :func:`map_key`.

    Raises:
        ValueError: If the family is unknown.
    """
    keys = tuple(keys)
    if _holds_backbone(keys):
        keys = tuple(key.removeprefix(PREFIX) for key in keys if key.startswith(PREFIX))
    rules = _find(family).first_release
    is_old = any(rule.forward(key) != key for key in keys for rule in rules)
    return NAMES[is_old]


def default_names(family: str | KeyMap, arch: str | None) -> str:
    """Which of :data:`NAMES` weights that were trained here get in files for the project's code.

    Args:
        family: See :func:`map_key`.
        arch: Name of the arch; None for one without a name.

    Raises:
        ValueError: If the family is unknown.
    """
    return NAMES[arch in _find(family).first_release_archs]


def unmap_state_dict(
    state_dict: Mapping[str, Tensor],
    family: str | KeyMap,
    task: str = "classification",
    *,
    names: str = "current",
) -> dict[str, Tensor]:
    """The way back: our weights with the names and parts that the original project gives them.

    Heads of detectors and segmentors keep their names. Tensors that stay whole are not copied;
    parts have memory of their own.

    Args:
        state_dict: Weights of one of our models, the backbone's beginning with ``backbone.``.
        family: See :func:`map_key`.
        task: See :func:`map_key`; ``'dense'`` keeps the prefix ``backbone.``, as the project's
            detectors and segmentors have it, and puts pyramids where these have them.
        names: One of :data:`NAMES`; only hierarchical families have two.

    Returns:
        Entries that :func:`map_state_dict` gives the names and shapes of ``state_dict``.

    Raises:
        ValueError: If an argument is not one of its choices, there is no backbone, or the
            project's models have no such weights; the message lists them.
    """
    key_map = _find(family)
    rules = (*key_map.trunk, *_task_rules(key_map, task))
    if names not in NAMES:
        raise ValueError(f"names must be one of {', '.join(NAMES)}, got {names!r}")
    if names == "first-release":
        if not key_map.first_release:
            raise ValueError("names must be 'current' for this family, whose names never changed")
        rules = key_map.first_release + rules
    if not _holds_backbone(state_dict):
        raise ValueError(f"there are no keys that begin with {PREFIX!r}, as those of our models do")

    tensors = {key.removeprefix(PREFIX): value for key, value in state_dict.items()}
    found: dict[str, Tensor] = {}
    foreign = []
    for key in state_dict:
        if key.startswith(PREFIX):
            named = _unmap_backbone(key.removeprefix(PREFIX), tensors, key_map, rules, task)
        else:
            named = [(_unmap_other(key, tensors, key_map, rules, task), state_dict[key])]
        for name, tensor in named:
            if name is None:
                foreign.append(key)
            elif name in found:
                raise ValueError(f"two of our keys stand for {shown(name)} in the project's models")
            else:
                found[name] = tensor
    if foreign:
        listing = some(dict.fromkeys(foreign))
        raise ValueError(f"the project has no place for {listing} in its models for {task!r}")
    _check_way_back(found, state_dict, key_map, task)
    return found


def _unmap_backbone(
    key: str, tensors: Mapping[str, Tensor], key_map: KeyMap, rules: Rules, task: str
) -> Iterator[tuple[str | None, Tensor]]:
    """Their names for a tensor of the backbone, or for its parts; None for what they do not have.

    No key of ours begins with ``backbone.`` here.
    """
    for part, tensor in _split_parts(key, tensors, key_map):
        name = _back(part, key, rules, tensors)
        if name is None or "@" in name:
            yield None, tensor
        else:
            yield (PREFIX + name if task == "dense" else name), tensor


def _unmap_other(
    key: str, tensors: Mapping[str, Tensor], key_map: KeyMap, rules: Rules, task: str
) -> str | None:
    """Their name for a tensor outside of our backbone; None for one that they do not have."""
    if task == "classification":
        name = _back(key, key, rules, tensors)
        return None if name == key else name
    if _DETECTOR_OF_OURS in tensors and key_map.detector:
        return _back(key, key, key_map.detector, tensors)
    name = _back(key, key, key_map.tasks[task], tensors)
    # a pyramid that the rules know by another name is inside of the backbone there
    return name if name is None or name == key else PREFIX + name


def _back(key: str, ours: str, rules: Rules, keys: Collection[str]) -> str | None:
    """Apply rules in reverse, see :meth:`Rule.back`."""
    for rule in reversed(rules):
        name = rule.back(key, ours, keys)
        if name is None:
            return None
        key = name
    return key


def _split_parts(
    key: str, tensors: Mapping[str, Tensor], key_map: KeyMap
) -> Iterator[tuple[str, Tensor]]:
    """A tensor under its name, or its parts under ``name@i``."""
    value = tensors[key]
    count = None if key_map.count_parts is None else key_map.count_parts(key, tensors)
    if count is None:
        yield key, value
        return
    if not value.dim() or not count or len(value) % count:
        raise ValueError(
            f"{shown(key)} of shape {tuple(value.shape)} cannot be split for {count} scans"
        )
    is_stacked = re.search(key_map.stacked, key) is not None
    for i, part in enumerate(value.chunk(count)):
        part = part[0] if is_stacked else part
        yield f"{key}@{i}", part.clone(memory_format=torch.contiguous_format)


def _check_way_back(
    found: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], key_map: KeyMap, task: str
) -> None:
    """Raise ValueError unless the way forward leads to the same names, shapes and types again."""
    shapes = {k: torch.empty(v.shape, dtype=v.dtype, device="meta") for k, v in found.items()}
    again = map_state_dict(shapes, key_map, task)
    wrong = [
        key
        for key in (*state_dict, *(key for key in again if key not in state_dict))
        if _kind(again.get(key)) != _kind(state_dict.get(key))
    ]
    if wrong:
        raise ValueError(
            f"{some(wrong)} would not be the same when read again: these weights are not"
            f" those of one of the project's models for {task!r}"
        )


def _kind(value: Tensor | None) -> tuple | None:
    return None if value is None else (value.shape, value.dtype)
