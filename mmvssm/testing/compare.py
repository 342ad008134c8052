"""Errors of one golden case against their tolerances."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from .recipe import relative_error

# Gradient norms below this share of the largest one are compared to it: they are rounding residue.
NORM_FLOOR = 1e-7


class MalformedCase(ValueError):
    """A case whose files contradict the format."""


class UnsupportedCase(Exception):
    """A well-formed case of something that this version does not build."""


@dataclass(frozen=True)
class Tolerance:
    """Largest relative errors that pass.

    Attributes:
        tensor: For outputs and gradients, L2 over the stored positions.
        norm: For gradient norms of parameters.
    """

    tensor: float
    norm: float

    @classmethod
    def of_backend(cls, backend: str) -> Tolerance:
        """1e-5 and 5e-5 for ``'torch'``, 1e-4 for the compiled kernels."""
        return cls(1e-5, 5e-5) if backend == "torch" else cls(1e-4, 1e-4)


@dataclass
class Comparison:
    """Collects the errors of a case.

    Attributes:
        tolerance: What passes.
        errors: ``(name, error, tolerance)`` of everything compared.
    """

    tolerance: Tolerance
    errors: list[tuple[str, float, float]] = field(default_factory=list)

    def tensor(self, data: dict[str, np.ndarray], name: str, value: Tensor | None) -> None:
        """Compare a tensor with the stored one; None (nothing came back) is an infinite error."""
        if value is None:
            error = math.inf
        else:
            error = relative_error(data, name, value.detach().cpu().double().numpy())
        self.errors.append((name, error, self.tolerance.tensor))

    def norms(self, stored: dict[str, float], got: dict[str, float]) -> None:
        """Compare gradient norms; a stored 0, and what is next to 0, absolutely."""
        floor = NORM_FLOOR * max(stored.values(), default=0.0)
        for name, expected in stored.items():
            difference = abs(got.get(name, math.inf) - expected)
            error = difference / max(expected, floor) if expected else difference
            self.errors.append((f"gradnorm {name}", error, self.tolerance.norm))

    def count(self, name: str, different: int) -> None:
        """Compare integers: any difference is too much."""
        self.errors.append((name, float(different), 0.0))

    @property
    def passed(self) -> bool:
        """Whether something was compared and every error is within its tolerance (NaN is not)."""
        return bool(self.errors) and all(error <= limit for _, error, limit in self.errors)

    def summary(self) -> str:
        """The worst error, what it was, and how many there are."""
        if not self.errors:
            return "nothing to compare"

        def excess(item: tuple[str, float, float]) -> float:
            _, error, limit = item
            if math.isnan(error):
                return math.inf
            return error / limit if limit else error

        name, error, limit = max(self.errors, key=excess)
        return f"worst {error:.2e} (tolerance {limit:.0e}) {name}, of {len(self.errors)} compared"
