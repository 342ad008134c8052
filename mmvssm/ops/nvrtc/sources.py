"""The CUDA sources that ship with the package, in the form that NVRTC takes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

#: A copy of, or a link to, ``ops/csrc`` of the repository.
FOLDER = Path(__file__).resolve().parents[1] / "csrc"
_FOLDERS = ("common", "cuda", "nvrtc")
_SUFFIXES = (".cpp", ".cuh", ".h")
# Headers of C++ and CUDA that the sources include; nvrtc/headers.h replaces all of them.
_STANDARD = ("cstdint", "type_traits", "cuda_bf16.h", "cuda_fp16.h", "cuda_runtime.h")


@cache
def headers() -> dict[str, str]:
    """Return the text of every header that a source may include, by the name in ``#include``.

    Raises:
        FileNotFoundError: If the sources are not where the package should have them.
    """
    files = {
        path.relative_to(FOLDER).as_posix(): path.read_text()
        for folder in _FOLDERS
        for path in sorted((FOLDER / folder).glob("*"))
        if path.suffix in _SUFFIXES
    }
    if "nvrtc/headers.h" not in files:
        raise FileNotFoundError(f"the CUDA sources of mmvssm are not in {str(FOLDER)!r}")
    return {**files, **dict.fromkeys(_STANDARD, files["nvrtc/headers.h"])}
