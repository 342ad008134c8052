"""Golden cases: reference numbers on disk, and whether our models and ops give the same.

A case is ``NAME.json`` (what was built and fed) beside ``NAME.npz`` (what came out);
``cross_scan.json`` holds its tables itself. Files of operators hold several cases.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mmvssm import ops

from .compare import Comparison, MalformedCase, Tolerance, UnsupportedCase
from .model_cases import compare_model
from .op_cases import SCANS, compare_scan, compare_tables

__all__ = ["Result", "Tolerance", "find_cases", "verify_file"]


@dataclass(frozen=True)
class Result:
    """Outcome of one case.

    Attributes:
        name: ``family/case``, for operators ``ops/file/case``.
        status: ``'passed'``, ``'failed'`` or ``'unsupported'``.
        detail: The worst error and what it was, or the reason.
    """

    name: str
    status: str
    detail: str


def find_cases(paths: Iterable[str | Path]) -> list[Path]:
    """The json files of all cases below the given folders (or given themselves), each once.

    They come in the order of the paths, sorted within a folder.

    Other json files (key lists, tables) are left out: a case has an ``.npz`` beside it
    or says its ``case``. An ``.npz`` without json counts as a case, which will fail.

    Raises:
        FileNotFoundError: If a path does not exist.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"no such file or folder: {path}")
        if path.is_file():
            found.append(path.with_suffix(".json"))
            continue
        below = {npz.with_suffix(".json") for npz in path.rglob("*.npz")}
        below.update(file for file in path.rglob("*.json") if _names_case(file))
        found += sorted(below)
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
    """Verify the case or cases of one json file.

    Args:
        path: The json file.
        backend: Backend of the ops; models run on the GPU for ``'cuda'``, else on the CPU.
        tolerance: What passes; None for :meth:`Tolerance.of_backend`.

    Yields:
        One result per case. Malformed cases fail with the reason.
    """
    path = Path(path)
    tolerance = tolerance or Tolerance.of_backend(backend)
    device = "cuda" if backend == "cuda" else "cpu"
    name = f"{path.parent.name}/{path.stem}"
    for case, compare in _cases(path, name, device):
        with ops.backend(backend):
            result = _verify(case, compare, Comparison(tolerance))
        yield result


def _cases(
    path: Path, name: str, device: str
) -> Iterator[tuple[str, Callable[[Comparison], None]]]:
    """Name and comparing function of each case of a file."""
    try:
        meta = json.loads(path.read_text())
        if not isinstance(meta, dict):
            raise MalformedCase("the json holds no object")
        family, kind = meta["family"], meta["case"]
        name = f"{family}/{kind}"
        data = {}
        if name != "ops/cross_scan":
            with np.load(path.with_suffix(".npz")) as arrays:
                data = {key: arrays[key] for key in arrays.files}
        scans = {}
        if family == "ops" and kind in SCANS:
            scans = {f"{name}/{case['name']}": case for case in meta["cases"]}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        yield name, partial(_refuse, MalformedCase(_reason(error)))
        return
    if family != "ops":
        yield name, partial(compare_model, meta, data, device=device)
    elif kind == "cross_scan":
        yield name, partial(compare_tables, meta, device=device)
    elif kind in SCANS:
        for scan_name, scan in scans.items():
            yield scan_name, partial(compare_scan, kind, scan, data, device=device)
    else:
        known = ", ".join((*SCANS, "cross_scan"))
        reason = f"operator {kind!r} is not built; built are {known}"
        yield name, partial(_refuse, UnsupportedCase(reason))


def _refuse(error: Exception, comparison: Comparison) -> None:
    raise error


def _verify(name: str, compare: Callable[[Comparison], None], comparison: Comparison) -> Result:
    try:
        # cuDNN would compute float32 convolutions with 10 bits of mantissa
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            compare(comparison)
    except UnsupportedCase as error:
        return Result(name, "unsupported", str(error))
    except Exception as error:  # one bad case must not keep the others from being verified
        return Result(name, "failed", _reason(error))
    return Result(name, "passed" if comparison.passed else "failed", comparison.summary())


def _reason(error: Exception) -> str:
    if isinstance(error, MalformedCase):
        return str(error)
    if isinstance(error, KeyError):
        return f"{error} is missing"
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}"
