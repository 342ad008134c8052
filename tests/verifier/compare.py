"""Errors of one golden case against their tolerances."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor

# Gradient norms below this share of the largest one are compared to it: they are rounding residue.
NORM_FLOOR = 1e-7


class MalformedCase(ValueError):
    """The files of a case contradict the format."""


class UnsupportedCase(Exception):
    """The case is well formed, but this version does not build what it describes."""


class Tolerance(NamedTuple):
    """Largest relative errors that pass: of tensors (L2) and of gradient norms."""

    tensor: float
    norm: float

    @classmethod
    def of_backend(cls, backend: str) -> Tolerance:
        """Return 1e-5 and 5e-5 for ``'torch'``, 1e-4 for the compiled kernels."""
        return cls(1e-5, 5e-5) if backend == "torch" else cls(1e-4, 1e-4)


class Comparison:
    """The errors of a case, each ``(name, error, tolerance)``."""

    def __init__(self, tolerance: Tolerance) -> None:
        self.tolerance = tolerance
        self.errors: list[tuple[str, float, float]] = []

    def tensor(self, data: Mapping[str, np.ndarray], name: str, value: Tensor | None) -> None:
        """Compare a tensor with the stored one: ``|value - stored| / |stored|`` (L2).

        Args:
            data: Arrays of the case: ``name``, ``name.index`` (positions), ``name.shape``.
            name: The tensor; KeyError if it is not stored.
            value: What was computed; None, like another shape, is an infinite error.
        """
        stored, shape = data[name].astype(np.float64), tuple(data[f"{name}.shape"].tolist())
        error = math.inf
        if value is not None and tuple(value.shape) == shape:
            got = value.detach().cpu().double().numpy().reshape(-1)[data[f"{name}.index"]]
            error = float(np.linalg.norm(got - stored) / max(np.linalg.norm(stored), 1e-30))
        self.errors.append((name, error, self.tolerance.tensor))

    def norms(self, stored: Mapping[str, float], got: Mapping[str, float]) -> None:
        """Compare gradient norms; absolutely where the stored one is 0 or next to 0."""
        floor = NORM_FLOOR * max(stored.values(), default=0.0)
        for name, expected in stored.items():
            difference = abs(got.get(name, math.inf) - expected)
            error = difference / max(expected, floor) if expected else difference
            self.errors.append((f"gradnorm {name}", error, self.tolerance.norm))

    def count(self, name: str, different: int) -> None:
        """Compare integers: any difference is an error."""
        self.errors.append((name, float(different), 0.0))

    @property
    def passed(self) -> bool:
        """Whether something was compared and every error is within its tolerance (NaN is not)."""
        return bool(self.errors) and all(error <= limit for _, error, limit in self.errors)

    def summary(self) -> str:
        """Return the worst error, its name, and the number of errors."""
        if not self.errors:
            return "nothing to compare"

        def excess(item: tuple[str, float, float]) -> float:
            return math.inf if math.isnan(item[1]) else item[1] / (item[2] or 1)

        name, error, limit = max(self.errors, key=excess)
        return f"worst {error:.2e} (tolerance {limit:.0e}) {name}, of {len(self.errors)} compared"
