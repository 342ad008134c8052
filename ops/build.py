"""The native build: which sources, for which devices, with which flags.

Environment variables:

* ``MMVSSM_WITH_OPS=0``: no native code; the package runs on its PyTorch path.
* ``FORCE_CUDA=1``: compile the CUDA kernels although no GPU is visible (needs nvcc).
* ``TORCH_CUDA_ARCH_LIST``: CUDA architectures; unset, those of the GPUs that are seen, and without
  any 7.5 to 12.0, as far as the toolkit goes, with PTX of the last.
* ``CUDA_HOME`` or ``CUDA_PATH``: root of the toolkit; unset, that of ``nvcc`` on the path, else
  ``/usr/local/cuda``.
* ``MAX_JOBS``: compilers to run side by side.
* ``MMVSSM_SANITIZE=1``: CPU kernels that end the process at a wrong access to memory or undefined
  behaviour, by GCC's sanitizers; Python needs their library preloaded (``make sanitize``).
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
# What was built and why not more, for the end of the build.
REPORT: list[str] = []
# vptr looks for type information that torch's libraries do not export
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]


def compiler_flags() -> tuple[list[str], list[str]]:
    """Flags to compile and to link C++ with, on this platform.

    Without OpenMP ``at::parallel_for`` is serial in this library.
    """
    if sys.platform == "darwin":
        # Apple's compiler takes the option behind another; torch brings omp.h and, loaded
        # beforehand, the library: a second copy of it would end the process.
        return ["-O3", "-Xpreprocessor", "-fopenmp"], []
    # GCC takes its own AVX-512 header for uninitialised memory, and remarks on an internal ABI.
    return ["-O3", "-fopenmp", "-Wno-psabi", "-Wno-maybe-uninitialized"], ["-fopenmp"]


def extensions() -> list:
    """The extensions for ``setup(ext_modules=...)``.

    Returns:
        One extension, or none with ``MMVSSM_WITH_OPS=0``.

    Raises:
        RuntimeError: If torch or a compiler that was asked for is missing.
    """
    if not _wanted():
        print("mmvssm: native ops left out (MMVSSM_WITH_OPS=0)")
        return []
    includes = [*_mmcv_headers(), str(SOURCES)]
    sources = [*SOURCES.glob("*.cpp"), *SOURCES.glob("cpu/*.cpp")]
    sanitizers = SANITIZERS if _is_on("MMVSSM_SANITIZE", "0") else []
    cxx_flags, link_flags = compiler_flags()
    flags = {"cxx": [*cxx_flags, *(["-O1", "-g1", *sanitizers] if sanitizers else [])]}
    macros = []
    architectures, note = (None, "") if sanitizers else _prepare_cuda()
    if architectures:
        sources += [*SOURCES.glob("cuda/*.cu"), *SOURCES.glob("cuda/*.cpp")]
        flags["nvcc"] = ["-O3"]
        if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
            # Own flags: torch knows fewer architectures than a newer toolkit.
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
    """The build command for ``setup(cmdclass=...)``."""
    if not _wanted():
        return {}
    from torch.utils.cpp_extension import BuildExtension

    class ReportingBuild(BuildExtension):
        """Says in the end what was built, and why not more."""

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
            " 'pip install --no-build-isolation .', or set MMVSSM_WITH_OPS=0 to go without"
            " native ops"
        )
    return wanted


def _mmcv_headers() -> list[str]:
    """Folder of mmcv's device registry, which the ops dispatch through; none without mmcv."""
    spec = importlib.util.find_spec("mmcv")
    if spec is None:
        return []
    folder = Path(spec.origin).parent / "ops" / "csrc" / "common"
    return [str(folder)] if (folder / "pytorch_device_registry.hpp").is_file() else []


def _prepare_cuda() -> tuple[str, str]:
    """Which CUDA architectures to build for; points CUDA_HOME where needed.

    Returns:
        The architectures as ``'8.0 9.0+PTX'``, empty for none, and why there are not more.

    Raises:
        RuntimeError: If ``FORCE_CUDA=1`` cannot be followed.
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
        # PTX of the last one lets later GPUs run it, too.
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
    """Architectures that a compiler knows, as ``['7.5', '8.0', ...]``."""
    numbers = {int(n) for n in re.findall(r"\bsm_(\d+)\b", _run(nvcc, "--list-gpu-code"))}
    return [f"{number // 10}.{number % 10}" for number in sorted(numbers)]


def _flags_of(architectures: str) -> list[str]:
    """Flags of nvcc for ``'8.0 9.0+PTX'``."""
    flags = []
    for name in architectures.split():
        number = _number(name.removesuffix("+PTX"))
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def cuda_toolkit() -> tuple[Path | None, str]:
    """The CUDA toolkit to compile with, also for mmcv's build.

    Looks where torch does: ``CUDA_HOME``, ``CUDA_PATH``, ``nvcc`` on the path, ``/usr/local/cuda``.

    Returns:
        Its root and ``''``; or None and the reason, if nvcc is missing or torch cannot use it:
        torch refuses toolkits of another major version than its own.
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
    # nvcc may be a wrapper script far from its toolkit: ask it. Debian's does not say; there the
    # headers lie where the system's do.
    top = re.search(r"^#\$ TOP=(.+)$", _run(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull), re.M)
    return (Path(top[1].strip()).resolve() if top else nvcc.parent.parent), ""


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout + done.stderr
