"""The native build: which sources, for which devices, with which flags.

Environment variables:

* ``MMVSSM_WITH_OPS=0``: build no native code; the package falls back to PyTorch.
* ``FORCE_CUDA=1``: compile the CUDA kernels even if no GPU is visible (needs nvcc).
* ``TORCH_CUDA_ARCH_LIST``: CUDA architectures. Default: those of the visible GPUs; without a GPU
  those from 7.5 to 12.0 that the toolkit supports, with PTX of the last.
* ``CUDA_HOME`` or ``CUDA_PATH``: root of the toolkit. Default: that of ``nvcc`` on the ``PATH``,
  otherwise ``/usr/local/cuda``.
* ``MAX_JOBS``: number of parallel compiler processes.
* ``MMVSSM_SANITIZE=1``: build CPU kernels with GCC's sanitizers, which abort the process on an
  invalid memory access or undefined behaviour; Python needs their library preloaded
  (``make sanitize``).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "ops" / "csrc"
USUAL_TOOLKIT = Path("/usr/local/cuda")
RELEASE_ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
# What was built and why not more; printed at the end of the build.
REPORT: list[str] = []
# vptr looks for type information that torch's libraries do not export
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]


def compiler_flags() -> tuple[list[str], list[str]]:
    """Return the flags for compiling and for linking C++ on this platform.

    Without OpenMP, ``at::parallel_for`` is serial in this library.
    """
    if sys.platform == "darwin":
        # Apple's compiler needs -Xpreprocessor before the option. torch comes with omp.h and with
        # the OpenMP library, which is loaded before ours: a second copy would abort the process.
        return ["-O3", "-Xpreprocessor", "-fopenmp"], []
    # GCC warns of uninitialised memory in its own AVX-512 header, and of an internal ABI change.
    return ["-O3", "-fopenmp", "-Wno-psabi", "-Wno-maybe-uninitialized"], ["-fopenmp"]


def extensions() -> list:
    """Return the extensions for ``setup(ext_modules=...)``.

    Returns:
        One extension, or none with ``MMVSSM_WITH_OPS=0``.

    Raises:
        RuntimeError: If torch is missing, an environment variable has an invalid value, or
            ``FORCE_CUDA=1`` is set without a usable CUDA toolkit.
    """
    if not _wanted():
        print("mmvssm: not building native ops (MMVSSM_WITH_OPS=0)")
        return []
    includes = [*_mmcv_headers(), str(SOURCES)]
    sources = [*SOURCES.glob("*.cpp"), *SOURCES.glob("cpu/*.cpp")]
    sanitizers = SANITIZERS if _is_on("MMVSSM_SANITIZE", "0") else []
    cxx_flags, link_flags = compiler_flags()
    if sanitizers:  # quick to compile, yet with fused multiply-adds as in the real kernels
        cxx_flags = [*cxx_flags, "-O1", "-fexpensive-optimizations", "-g1", *sanitizers]
    flags = {"cxx": cxx_flags}
    macros = []
    architectures, note = (None, "") if sanitizers else _prepare_cuda()
    if architectures:
        sources += [*SOURCES.glob("cuda/*.cu"), *SOURCES.glob("cuda/*.cpp")]
        flags["nvcc"] = ["-O3"]
        if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
            # our own flags, because torch knows fewer architectures than a newer toolkit
            flags["nvcc"] += _flags_of(architectures)
        macros += [
            ("MMVSSM_WITH_CUDA", None),
            ("MMVSSM_CUDA_ARCHITECTURES", f'"{architectures}"'),
        ]
    macros.append(("MMVSSM_BUILD_NOTE", f'"{note}"'))

    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    built = f"cpu and cuda ({architectures})" if architectures else "cpu, and none for cuda"
    REPORT.append(f"mmvssm: native ops for {built}" + (f": {note}" if note else ""))
    print(REPORT[-1].replace("native", "building native"))
    extension = CUDAExtension if architectures else CppExtension
    return [
        extension(
            name="mmvssm._vssm_ext",
            sources=sorted(str(path.relative_to(ROOT)) for path in sources),
            include_dirs=includes,
            define_macros=macros,
            extra_compile_args=flags,
            extra_link_args=[*link_flags, *sanitizers],
        )
    ]


def cmdclass() -> dict:
    """Return the build command for ``setup(cmdclass=...)``."""
    if not _wanted():
        return {}
    from torch.utils.cpp_extension import BuildExtension

    class ReportingBuild(BuildExtension):
        """Build command that finally prints what was built, and why not more."""

        def run(self) -> None:
            super().run()
            print("\n".join(REPORT))

    return {"build_ext": ReportingBuild}


def _is_on(variable: str, default: str) -> bool:
    value = os.environ.get(variable, default)
    if value not in ("0", "1"):
        raise RuntimeError(f"{variable} must be 0 or 1, got {value!r}")
    return value == "1"


def _wanted() -> bool:
    wanted = _is_on("MMVSSM_WITH_OPS", "1")
    if wanted and importlib.util.find_spec("torch") is None:
        raise RuntimeError(
            "torch is not visible to this build: install torch first and build with"
            " 'pip install --no-build-isolation .', or set MMVSSM_WITH_OPS=0 to build without"
            " native ops"
        )
    return wanted


def _mmcv_headers() -> list[str]:
    """Return the folder of mmcv's device registry, which dispatches the ops; none without mmcv."""
    spec = importlib.util.find_spec("mmcv")
    if spec is None:
        return []
    folder = Path(spec.origin).parent / "ops" / "csrc" / "common"
    return [str(folder)] if (folder / "pytorch_device_registry.hpp").is_file() else []


def _prepare_cuda() -> tuple[str, str]:
    """Choose the CUDA architectures to build for, and set ``CUDA_HOME`` to the toolkit.

    Returns:
        The architectures, such as ``'8.0 9.0+PTX'``, empty for none, and why there are not more.

    Raises:
        RuntimeError: If ``FORCE_CUDA=1`` is set without a usable CUDA toolkit.
    """
    import torch

    forced = os.environ.get("FORCE_CUDA", "0") == "1"
    seen = torch.cuda.is_available()
    home, reason = cuda_toolkit()
    if home is None and forced:
        raise RuntimeError(f"FORCE_CUDA=1, but {reason}")
    if not (forced or seen):
        return "", "torch saw no GPU, and FORCE_CUDA=1 was not set"
    if home is None:
        return "", reason
    # torch.utils.cpp_extension reads it when it is first imported.
    os.environ["CUDA_HOME"] = str(home)
    given = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if given:
        return given, ""
    wanted = _visible_architectures() if seen else list(RELEASE_ARCHITECTURES)
    known = _architectures_of(home / "bin" / "nvcc")
    fitting = [name for name in wanted if name in known]
    missing = [name for name in wanted if name not in known]
    note = f"not for {' '.join(missing)}: nvcc in {home} does not know them" if missing else ""
    if not seen or any(_number(name) > _number(known[-1]) for name in missing):
        # PTX of the last architecture lets later GPUs run the kernels, too
        fitting = list(dict.fromkeys([*fitting, *([] if fitting else known[-1:])]))
        fitting[-1] += "+PTX"
    if not fitting:
        return "", note
    return " ".join(fitting), note


def _number(architecture: str) -> int:
    return int(architecture.replace(".", ""))


def _visible_architectures() -> list[str]:
    import torch

    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return [f"{major}.{minor}" for major, minor in sorted(found)]


def _architectures_of(nvcc: Path) -> list[str]:
    """Return the architectures that a compiler knows, such as ``['7.5', '8.0']``."""
    numbers = {int(n) for n in re.findall(r"\bsm_(\d+)\b", _run(nvcc, "--list-gpu-code"))}
    return [f"{number // 10}.{number % 10}" for number in sorted(numbers)]


def _flags_of(architectures: str) -> list[str]:
    """Return nvcc's flags for architectures such as ``'8.0 9.0+PTX'``."""
    flags = []
    for name in architectures.split():
        number = _number(name.removesuffix("+PTX"))
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def cuda_toolkit() -> tuple[Path | None, str]:
    """Find the CUDA toolkit to compile with, also for mmcv's build.

    Searches as torch does: ``CUDA_HOME``, ``CUDA_PATH``, ``nvcc`` on ``PATH``, ``/usr/local/cuda``.

    Returns:
        Its root and ``''``; or None and the reason, if nvcc is missing or torch cannot use it:
        torch refuses toolkits whose major version differs from its own.
    """
    import torch

    if torch.version.cuda is None:
        return None, "torch is a build without CUDA"
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    on_path = shutil.which("nvcc")
    if home:
        nvcc = Path(home, "bin", "nvcc")
    else:
        nvcc = Path(on_path) if on_path else USUAL_TOOLKIT / "bin" / "nvcc"
    if not nvcc.exists():
        named = (
            f"{home} has no bin/nvcc" if home else f"nvcc is not on the path or in {nvcc.parent}"
        )
        return None, named
    release = re.search(r"release (\d+)", _run(nvcc, "-V"))
    if release is None:
        return None, f"{nvcc} does not run"
    if release[1] != torch.version.cuda.split(".")[0]:
        return None, f"nvcc is of CUDA {release[1]} and torch of CUDA {torch.version.cuda}"
    # nvcc may be a wrapper script far from its toolkit, so ask it for the root. Debian's does not
    # print one; there the headers are among the system's.
    top = re.search(r"^#\$ TOP=(.+)$", _run(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull), re.M)
    return (Path(top[1].strip()).resolve() if top else nvcc.parent.parent), ""


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout + done.stderr
