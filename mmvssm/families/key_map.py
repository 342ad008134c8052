"""Renaming of weights between a project's files and our models, as a family declares it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmvssm.messages import join_names, printable

from .family import Family, Rules, find_declared

TASKS = ("classification", "dense")
#: Generations of names in the code of VMamba and of the projects derived from it.
NAMES = ("current", "first-release")
PREFIX = "backbone."
#: Prefixes of renamed keys outside of the backbone.
OUTSIDE = ("head.", "neck.")
#: Buffer of our models whose shape ``(H, W, 0)`` stores the grid of position embeddings.
POS_GRID = "pos_grid"


@dataclass(frozen=True)
class KeyMap:
    """Mapping between original names and ours for a family's weights in models of one task.

    Attributes:
        family: The declaration, or a name of it.
        task: ``'classification'`` (with the classifier's norm and head) or ``'dense'``.

    Raises:
        ValueError: If family or task is unknown.
    """

    family: Family
    task: str = "classification"

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", find_declared(self.family))
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")

    def key_to_ours(self, key: str) -> str | None:
        """Return our name for a key of any release, given without the prefix ``backbone.``.

        Returns None for a key that a model of the task does not have. Unknown keys are returned
        unchanged, so that a strict load reports them. See :func:`split_part` for split tensors.
        """
        family = self.family
        name = _to_ours((*family.first_release, *family.trunk, *family.tasks[self.task]), key)
        return name if name is None or name.startswith(OUTSIDE) else PREFIX + name

    def names(self, keys: Collection[str]) -> Iterator[tuple[str, str | None]]:
        """Yield each key of a file with our name for it, possibly of a part, or None.

        If the backbone's keys begin with ``backbone.``, other keys keep their names, except those
        of the project's own necks and heads.
        """
        is_complete, family = has_backbone(keys), self.family
        detector = family.detector if family.detector_key and family.detector_key[0] in keys else ()
        for key in keys:
            if not is_complete or key.startswith(PREFIX):
                yield key, self.key_to_ours(key.removeprefix(PREFIX))
            else:
                yield key, _to_ours(detector, key)

    def to_ours(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the weights of a file, join split tensors, and make 1x1 convolutions linear.

        Raises:
            ValueError: If two keys get the same name, or a part is missing.
        """
        renamed: dict[str, Tensor] = {}
        sources: dict[str, str] = {}
        for key, name in self.names(weights):
            if name is None:
                continue
            value = weights[key]
            if name in renamed:
                raise ValueError(
                    f"keys {printable(sources[name])} and {printable(key)} are both"
                    f" {printable(name)}: the file mixes two networks, or two namings of one; keep"
                    " only one of them"
                )
            if re.search(self.family.linear, name) and value.shape[2:] == (1, 1):
                value = value[..., 0, 0]
            renamed[name], sources[name] = value, key
        return self._join_parts(renamed)

    def unused(self, keys: Collection[str], used: Collection[str]) -> tuple[str, ...]:
        """Return the keys of a file whose names in :meth:`to_ours` are not ``used``."""
        return tuple(
            key for key, name in self.names(keys) if name is None or split_part(name)[0] not in used
        )

    def to_original(
        self, weights: Mapping[str, Tensor], *, names: str = "current"
    ) -> dict[str, Tensor]:
        """Rename and split the weights of one of our models as in the original project.

        This is the inverse of :meth:`to_ours`. Only parts of split tensors are copied. Heads of
        detectors and segmentors keep their names; pyramids get those of the project's ``'dense'``
        models.

        Args:
            weights: Weights by our names; the backbone's begin with ``backbone.``.
            names: One of :data:`NAMES`; only some families have two.

        Raises:
            ValueError: If the project's models have no such weights; the message lists them.
        """
        rules = (*self.family.trunk, *self.family.tasks[self.task])
        if names not in NAMES:
            raise ValueError(f"names must be one of {', '.join(NAMES)}, got {names!r}")
        if names == "first-release":
            rules = self.family.first_release + rules
            if not self.family.first_release:
                raise ValueError("names must be 'current' for this family: its names never changed")
        if not has_backbone(weights):
            raise ValueError(f"no key begins with {PREFIX!r}, as those of our models do")
        weights = {key: value for key, value in weights.items() if key != PREFIX + POS_GRID}
        tensors = {key.removeprefix(PREFIX): value for key, value in weights.items()}
        found: dict[str, Tensor] = {}
        foreign = []
        for key, value in weights.items():
            ours, in_backbone = key.removeprefix(PREFIX), key.startswith(PREFIX)
            for part, tensor in self._parts(ours, tensors) if in_backbone else [(key, value)]:
                name = self._original_name(part, ours, in_backbone, rules, tensors)
                if name is None:
                    foreign.append(key)
                elif name in found:
                    raise ValueError(f"two of our keys map to the original name {printable(name)}")
                else:
                    found[name] = tensor
        if foreign:
            raise ValueError(
                f"the project's models for {self.task!r} have no counterpart of"
                f" {join_names(dict.fromkeys(foreign))}"
            )
        self._check_original(found, weights)
        return found

    def _original_name(
        self, part: str, ours: str, in_backbone: bool, rules: Rules, keys: Collection[str]
    ) -> str | None:
        """Return the original name of a tensor or part; None if the project lacks it."""
        family, is_dense = self.family, self.task == "dense"
        if is_dense and not in_backbone:
            if family.detector_key is not None and family.detector_key[1] in keys:
                name = _to_original(family.detector, part, ours, keys)
                if name != part:
                    return name
            rules = family.tasks[self.task]
        name = _to_original(rules, part, ours, keys)
        if name is None:
            return None
        if in_backbone:
            return None if "@" in name else PREFIX + name if is_dense else name
        if not is_dense:
            return None if name == part else name
        # a pyramid that the task's rules rename belongs to the backbone in the original
        return name if name == part else PREFIX + name

    def _join_parts(self, renamed: dict[str, Tensor]) -> dict[str, Tensor]:
        """Replace the entries ``name@i`` by one entry ``name``."""
        joined: dict[str, Tensor] = {}
        parts: dict[str, dict[int, Tensor]] = {}
        for key, value in renamed.items():
            name, part = split_part(key)
            if part is None:
                joined[name] = value
            else:
                parts.setdefault(name, {})[part] = value
        for name, values in parts.items():
            if max(values) >= len(values):
                missing = next(i for i in range(len(values)) if i not in values)
                raise ValueError(
                    f"{printable(name)} is incomplete: part {missing} of it is missing"
                )
            join = torch.stack if re.search(self.family.stacked, name) else torch.cat
            joined[name] = join([values[part] for part in sorted(values)])
        return joined

    def _parts(self, key: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield a tensor under its name, or its parts under ``name@i``."""
        value, count_parts = tensors[key], self.family.count_parts
        count = None if count_parts is None else count_parts(key, tensors)
        if count is None:
            yield key, value
            return
        if not value.dim() or not count or len(value) % count:
            raise ValueError(
                f"{printable(key)} of shape {tuple(value.shape)} cannot be split for {count} scans"
            )
        is_stacked = re.search(self.family.stacked, key) is not None
        for i, part in enumerate(value.chunk(count)):
            part = part[0] if is_stacked else part
            yield f"{key}@{i}", part.clone(memory_format=torch.contiguous_format)

    def _check_original(self, found: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Raise ValueError unless :meth:`to_ours` restores all names, shapes and dtypes."""
        again = self.to_ours({key: value.to("meta") for key, value in found.items()})
        kinds = [{k: (v.shape, v.dtype) for k, v in side.items()} for side in (weights, again)]
        wrong = [k for k in {**weights, **again} if kinds[0].get(k) != kinds[1].get(k)]
        if wrong:
            raise ValueError(
                f"{join_names(wrong)} would differ when read back: these weights do not belong to"
                f" one of the project's models for {self.task!r}"
            )


def _to_ours(rules: Rules, key: str) -> str | None:
    for rule in rules:
        renamed = rule.to_ours(key)
        if renamed is None:
            return None
        key = renamed
    return key


def _to_original(rules: Rules, part: str, ours: str, keys: Collection[str]) -> str | None:
    name: str | None = part
    for rule in reversed(rules):
        name = rule.to_original(name, ours, keys)
        if name is None:
            return None
    return name


def has_backbone(keys: Iterable[str]) -> bool:
    """Return whether keys belong to a complete model, where the backbone has a prefix."""
    return any(key.startswith(PREFIX) for key in keys)


def split_part(key: str) -> tuple[str, int | None]:
    """Split a key ``name@i`` into name and index of the part, None for an unsplit tensor."""
    name, _, part = key.partition("@")
    return (name, int(part)) if part.isdecimal() else (key, None)


def map_key(key: str, family: str | Family, task: str) -> str | None:
    """Return our name for a key of a released file; see :meth:`KeyMap.key_to_ours`."""
    return KeyMap(family, task).key_to_ours(key)


def map_state_dict(
    state_dict: Mapping[str, Tensor], family: str | Family, task: str = "classification"
) -> dict[str, Tensor]:
    """Rename the weights of a released file; see :meth:`KeyMap.to_ours`."""
    return KeyMap(family, task).to_ours(state_dict)


def release_names(keys: Iterable[str], family: Family) -> str:
    """Return which of :data:`NAMES` the keys of a released file have."""
    keys = tuple(keys)
    if has_backbone(keys):
        keys = tuple(key.removeprefix(PREFIX) for key in keys if key.startswith(PREFIX))
    is_old = any(rule.to_ours(key) != key for key in keys for rule in family.first_release)
    return NAMES[is_old]
