"""Finding family, arch and constructor options of a backbone from its weights."""

from .find import (
    ArchError,
    Found,
    MixedFamiliesError,
    UnknownFamilyError,
    find_arch,
    find_family,
    read_config,
)
from .shapes import compare, shapes_of

__all__ = [
    "ArchError",
    "Found",
    "MixedFamiliesError",
    "UnknownFamilyError",
    "compare",
    "find_arch",
    "find_family",
    "read_config",
    "shapes_of",
]
