"""Verification that models and operators give the numbers that golden cases store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from mmvssm import ops

from . import readers  # noqa: F401  registers them
from .cases import Case, Checks, find_reader
from .compare import Comparison, MalformedCase, Tolerance, UnsupportedCase
from .models import ModelSpec, compare_model


class Result(NamedTuple):
    """Outcome of one case.

    Attributes:
        name: ``family/case``, with ``/part`` for files of several cases.
        status: ``'passed'``, ``'failed'`` or ``'unsupported'``.
        detail: The worst error and its name, or the reason.
    """

    name: str
    status: str
    detail: str


def find_cases(paths: Iterable[str | Path]) -> list[Path]:
    """Return the json files of all cases below the given folders (or given themselves), each once.

    They come in the order of the paths, sorted within a folder. A case has an ``.npz`` of its
    name or says its ``case``; other json files (key lists, tables) are left out. An ``.npz``
    without json counts as a case, which will fail. A path that does not exist raises
    FileNotFoundError.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"no such file or folder: {path}")
        if path.is_file():
            found.append(path.with_suffix(".json"))
            continue
        below = {npz.with_suffix(".json") for npz in path.rglob("*.npz")}
        found += sorted(below.union(filter(_names_case, path.rglob("*.json"))))
    return list(dict.fromkeys(found))


def _names_case(path: Path) -> bool:
    try:
        meta = json.loads(path.read_text())
    except ValueError:
        return True
    return isinstance(meta, dict) and "case" in meta


def verify_file(
    path: str | Path, backend: str = "auto", tolerance: Tolerance | None = None
) -> Iterator[Result]:
    """Verify the case or cases of one json file; malformed cases fail with the reason.

    Args:
        path: The json file.
        backend: Backend of the ops; models run on the GPU for ``'cuda'``, else on the CPU.
        tolerance: What passes; None for :meth:`Tolerance.of_backend`.
    """
    name, checks = _read(Path(path), "cuda" if backend == "cuda" else "cpu")
    for part, check in checks.items():
        with ops.backend(backend):
            comparison = Comparison(tolerance or Tolerance.of_backend(backend))
            result = _run(f"{name}/{part}" if part else name, check, comparison)
        yield result


def _read(path: Path, device: str) -> tuple[str, Checks]:
    """Return the name of a file's case and its checks: one that raises if it cannot be read."""
    name = f"{path.parent.name}/{path.stem}"
    try:
        case = Case(path, device)
        family, kind = case.meta["family"], case.meta["case"]
        name = f"{family}/{kind}"
        checks = find_reader(family, kind)(case)
        if isinstance(checks, ModelSpec):
            checks = {"": partial(compare_model, case, checks)}
        if not checks:
            raise MalformedCase("the file holds no case")
    except Exception as error:  # one bad case must not keep the others from being verified
        return name, {"": partial(_refuse, error)}
    return name, checks


def _refuse(error: Exception, comparison: Comparison) -> None:
    raise error


def _run(name: str, check: Callable[[Comparison], None], comparison: Comparison) -> Result:
    try:
        # cuDNN would compute float32 convolutions with 10 bits of mantissa
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            check(comparison)
    except (UnsupportedCase, MalformedCase) as error:
        unsupported = isinstance(error, UnsupportedCase)
        return Result(name, "unsupported" if unsupported else "failed", str(error))
    except KeyError as error:
        return Result(name, "failed", f"{error} is missing")
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        return Result(name, "failed", f"{type(error).__name__}: {first_line}")
    return Result(name, "passed" if comparison.passed else "failed", comparison.summary())
