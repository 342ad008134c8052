"""Recognition of a checkpoint's family by its keys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

import torch
from torch import Tensor, nn

from mmvssm.messages import join_names, printable

from .family import FAMILIES, Family
from .key_map import PREFIX, KeyMap, split_part

#: Prefixes of the names of a backbone's blocks; the rest of a model may have blocks of any name.
_BLOCK = re.compile(
    r"(?:backbone\.)?(?:net\.)?((?:layers|levels|stages)(?:\.\d+)?(?:\.blocks)?\.\d+\.)"
)


class UnknownFamilyError(ValueError):
    """The keys belong to no declared family."""


class MixedFamiliesError(ValueError):
    """The keys belong to several families."""


def find_family(keys: Iterable[str]) -> Family:
    """Return the family whose ``sign`` matches a file's keys and which knows all of its blocks.

    Raises:
        MixedFamiliesError: If several families match.
        UnknownFamilyError: If no family matches, or it lacks some of the weights.
    """
    keys, names, first = list(keys), [], {}
    signed: dict[str, set[str]] = {}
    scanning: dict[str, set[str]] = {}
    for key, match in ((key, _BLOCK.match(key)) for key in keys):
        if match is None:
            continue
        names.append(key[match.start(1) :])
        for family in FAMILIES.values():
            for claims, sign in ((signed, family.sign), (scanning, family.scan)):
                if sign and re.search(sign, names[-1]):
                    claims.setdefault(match[1], set()).add(family.name)
                    first.setdefault(family.name, key)
    claims = list({**scanning, **signed}.values())
    found = set.intersection(*claims) if claims else set()
    unknown = {name: _unknown_parts(FAMILIES[name], names) for name in sorted(found)}
    known = [name for name, parts in unknown.items() if not parts]
    if len(known) == 1:
        return FAMILIES[known[0]]
    if len(set().union(*claims)) > 1:
        mixed = [f"{name} ({printable(first[name])})" for name in sorted(set().union(*claims))]
        raise MixedFamiliesError(
            f"the keys mix families: {' and '.join(mixed)}; a file must hold a single network,"
            " whose family can be named with --arch FAMILY/ARCH"
        )
    reason = f"has no backbone among its keys {join_names(keys, 4) or '(there are none)'}"
    for name, parts in unknown.items():
        reason = f"has weights in its blocks that {name} does not have: {join_names(parts)}"
    raise UnknownFamilyError(
        f"the file {reason}; the declared families are {', '.join(FAMILIES)}: import the module"
        " that declares its family (--import MODULE), or check the file"
    )


def _unknown_parts(family: Family, names: list[str]) -> list[str]:
    """Return one key for each kind of weight that no backbone of the family has in its blocks."""
    known, unknown = _parts(family), {}
    for name in names:
        ours = KeyMap(family).key_to_ours(name)
        part = None if ours is None else _without_numbers(split_part(ours)[0])
        if part is not None and part not in known:
            unknown.setdefault(part, name)
    return list(unknown.values())


@cache
def _parts(family: Family) -> frozenset[str]:
    """Return the keys of all named archs of a family, with their numbers masked."""
    archs = list(family.backbone.arch_settings)
    weights = [named_shapes(family.backbone, arch) for arch in archs]
    with torch.device("meta"):
        weights += [family.backbone(archs[0], **more).state_dict() for more in family.variants]
    return frozenset(PREFIX + _without_numbers(key) for keys in weights for key in keys)


@cache
def named_shapes(backbone: type[nn.Module], arch: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a named arch's weights by key, without allocating the weights."""
    with torch.device("meta"):
        return shapes_of(backbone(arch).state_dict())


def shapes_of(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a state dict by key."""
    return {key: tuple(value.shape) for key, value in state_dict.items()}


def _without_numbers(key: str) -> str:
    return re.sub(r"\d+", "#", key)
