"""Golden cases and the readers of what they describe, which other packages may extend."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .compare import Comparison, MalformedCase, UnsupportedCase
from .models import ModelSpec


class Case:
    """One ``NAME.json`` with its arrays.

    Attributes:
        path: The json file.
        device: Where to run.
        meta: What the json file holds.
        data: The arrays of ``NAME.npz``.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.path, self.device = path, device
        self.meta: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(self.meta, dict):
            raise MalformedCase("the json holds no object")

    @cached_property
    def data(self) -> dict[str, np.ndarray]:
        with np.load(self.path.with_suffix(".npz")) as arrays:
            return {key: arrays[key] for key in arrays.files}


#: Functions that run a case or a part of it and compare, by name of the part (``""``: no parts).
Checks = Mapping[str, Callable[[Comparison], None]]
Reader = Callable[[Case], ModelSpec | Checks]

READERS: dict[str, Reader] = {}


def register_reader(name: str) -> Callable[[Reader], Reader]:
    """Register a reader (decorator).

    A reader takes a :class:`Case`. It returns a :class:`ModelSpec`, whose models are then filled,
    run and compared, or functions that run and compare by themselves. It raises KeyError or
    MalformedCase for a case that contradicts its format, UnsupportedCase for a variant that is
    not built.

    Args:
        name: A family, or ``family/case`` for the cases of one name; ValueError if it is taken.
    """

    def register(reader: Reader) -> Reader:
        if name in READERS:
            raise ValueError(f"{name!r} already has a reader, of {READERS[name].__module__}")
        READERS[name] = reader
        return reader

    return register


def find_reader(family: str, kind: str) -> Reader:
    """Return the reader of a case; UnsupportedCase if there is none."""
    for name in (f"{family}/{kind}", family):
        if name in READERS:
            return READERS[name]
    kinds = [name.partition("/")[2] for name in READERS if name.startswith(f"{family}/")]
    if kinds:
        what = "operator" if family == "ops" else f"{family} case"
        raise UnsupportedCase(f"{what} {kind!r} is not built; built are {', '.join(kinds)}")
    families = sorted(name for name in READERS if "/" not in name)
    raise UnsupportedCase(f"family {family!r} is not built; built are {', '.join(families)}")
