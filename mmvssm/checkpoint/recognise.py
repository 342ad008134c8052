"""The family of a checkpoint, recognised by what its declaration says of keys."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

import torch
from torch import nn

from mmvssm.families import FAMILIES, Family
from mmvssm.families.key_map import PREFIX, KeyMap, split_part
from mmvssm.messages import join_names, printable

from .compare import shapes_of

#: Beginnings of the names of a backbone's blocks; the rest of a model may have blocks of any name.
_BLOCK = re.compile(r"(?:backbone\.)?(?:net\.)?((?:layers|stages)(?:\.\d+)?(?:\.blocks)?\.\d+\.)")


class UnknownFamilyError(ValueError):
    """No declared family has such keys."""


class MixedFamiliesError(ValueError):
    """Several families have such keys, or some of them."""


def find_family(keys: Iterable[str]) -> Family:
    """Return the family of a file's backbone: by its signs, and only if it knows all of the blocks.

    Args:
        keys: Keys of the file in original names or ours, those of necks and heads as well.

    Raises:
        UnknownFamilyError: If no family is recognised; the message lists those declared.
        MixedFamiliesError: If several are.
    """
    keys = list(keys)
    found: dict[str, str] = {}
    names: list[str] = []
    scanning: list[tuple[str, str, str]] = []
    signed: set[str] = set()
    for key, match in ((key, _BLOCK.match(key)) for key in keys):
        if match is None:
            continue
        names.append(key[match.start(1) :])
        for family in FAMILIES.values():
            if family.sign and re.search(family.sign, names[-1]):
                found.setdefault(family.name, key)
                signed.add(match[1])
            if family.scan and re.search(family.scan, names[-1]):
                scanning.append((match[1], family.name, key))
    for block, family_name, key in scanning:
        if block not in signed:
            found.setdefault(family_name, key)
    unknown = {name: _unknown_parts(FAMILIES[name], names) for name in found}
    known = [name for name, parts in unknown.items() if not parts]
    if len(known) == 1:
        return FAMILIES[known[0]]
    if len(found) > 1:
        claims = " and ".join(f"{name} ({printable(key)})" for name, key in found.items())
        raise MixedFamiliesError(
            f"the keys mix families: {claims}; a file must hold one network only, whose family"
            " --arch FAMILY/ARCH may name"
        )
    reason = f"has no backbone among its keys {join_names(keys, 4) or '(there are none)'}"
    for name, parts in unknown.items():
        reason = f"has weights in its blocks that {name} does not have: {join_names(parts)}"
    raise UnknownFamilyError(
        f"the file {reason}; the declared families are {', '.join(FAMILIES)}: import the module"
        " that declares its family (--import MODULE), or check the file"
    )


def _unknown_parts(family: Family, names: list[str]) -> list[str]:
    """Return the keys of blocks that no backbone of the family has, each kind once."""
    known, unknown = _parts(family), {}
    for name in names:
        ours = KeyMap(family).key_to_ours(name)
        part = None if ours is None else _without_numbers(split_part(ours)[0])
        if part is not None and part not in known:
            unknown.setdefault(part, name)
    return list(unknown.values())


@cache
def _parts(family: Family) -> frozenset[str]:
    """Return the keys of all named archs of a family, without their numbers."""
    archs = list(family.backbone.arch_settings)
    weights = [named_shapes(family.backbone, arch) for arch in archs]
    with torch.device("meta"):
        weights += [family.backbone(archs[0], **more).state_dict() for more in family.variants]
    return frozenset(PREFIX + _without_numbers(key) for keys in weights for key in keys)


@cache
def named_shapes(backbone: type[nn.Module], arch: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a named arch's weights by key, which takes no memory for them."""
    with torch.device("meta"):
        return shapes_of(backbone(arch).state_dict())


def _without_numbers(key: str) -> str:
    return re.sub(r"\d+", "#", key)
