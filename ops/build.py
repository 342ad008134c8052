"""The native build: which sources, for which devices, with which flags.

Environment variables:

* ``MMVSSM_WITH_OPS=0``: no native code; the package runs on its PyTorch path.
* ``FORCE_CUDA=1``: compile the CUDA kernels although no GPU is visible (needs nvcc).
* ``TORCH_CUDA_ARCH_LIST``: CUDA architectures, ``8.0 8.6 8.9 9.0+PTX`` if unset and no GPU is seen.
* ``MAX_JOBS``: compilers to run side by side.
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
RELEASE_ARCHITECTURES = "8.0 8.6 8.9 9.0+PTX"


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
        RuntimeError: If torch, mmcv or a compiler that was asked for is missing.
    """
    if not _wanted():
        print("mmvssm: native ops left out (MMVSSM_WITH_OPS=0)")
        return []
    includes = [str(_mmcv_headers()), str(SOURCES)]
    sources = [*SOURCES.glob("*.cpp"), *SOURCES.glob("cpu/*.cpp")]
    cxx_flags, link_flags = compiler_flags()
    flags = {"cxx": cxx_flags}
    macros = []
    with_cuda = _prepare_cuda()
    if with_cuda:
        sources += [*SOURCES.glob("cuda/*.cu"), *SOURCES.glob("cuda/*.cpp")]
        flags["nvcc"] = ["-O3"]
        architectures = os.environ["TORCH_CUDA_ARCH_LIST"]
        macros += [
            ("MMVSSM_WITH_CUDA", None),
            ("MMVSSM_CUDA_ARCHITECTURES", f'"{architectures}"'),
        ]

    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    print(f"mmvssm: building native ops for cpu{' and cuda' if with_cuda else ''}")
    extension = CUDAExtension if with_cuda else CppExtension
    return [
        extension(
            name="mmvssm._vssm_ext",
            sources=sorted(str(path.relative_to(ROOT)) for path in sources),
            include_dirs=includes,
            define_macros=macros,
            extra_compile_args=flags,
            extra_link_args=link_flags,
        )
    ]


def cmdclass() -> dict:
    """The build command for ``setup(cmdclass=...)``."""
    if not _wanted():
        return {}
    from torch.utils.cpp_extension import BuildExtension

    return {"build_ext": BuildExtension}


def _wanted() -> bool:
    value = os.environ.get("MMVSSM_WITH_OPS", "1")
    if value not in ("0", "1"):
        raise RuntimeError(f"MMVSSM_WITH_OPS must be 0 or 1, got {value!r}")
    if value == "1" and importlib.util.find_spec("torch") is None:
        raise RuntimeError(
            "torch is not visible to this build: install torch first and build with"
            " 'pip install --no-build-isolation .', or set MMVSSM_WITH_OPS=0 to go without"
            " native ops"
        )
    return value == "1"


def _mmcv_headers() -> Path:
    """Folder of mmcv's device registry, which the ops dispatch through."""
    spec = importlib.util.find_spec("mmcv")
    if spec is not None:
        folder = Path(spec.origin).parent / "ops" / "csrc" / "common"
        if (folder / "pytorch_device_registry.hpp").is_file():
            return folder
    raise RuntimeError(
        "mmcv >= 2.0 is not installed: mmvssm's ops dispatch through its device registry, whose"
        " header ships in the package; 'pip install --no-build-isolation mmcv==2.1.0' first, or"
        " set MMVSSM_WITH_OPS=0"
    )


def _prepare_cuda() -> bool:
    """Whether to build CUDA kernels; points CUDA_HOME and the architecture list where needed."""
    import torch

    forced = os.environ.get("FORCE_CUDA", "0") == "1"
    if not (forced or torch.cuda.is_available()):
        return False
    home, reason = cuda_toolkit()
    if home is None:
        if forced:
            raise RuntimeError(f"FORCE_CUDA=1, but {reason}")
        print(f"mmvssm: a GPU is visible, but {reason}: building CPU kernels only")
        return False
    # torch.utils.cpp_extension reads it when it is first imported.
    os.environ["CUDA_HOME"] = str(home)
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        os.environ["TORCH_CUDA_ARCH_LIST"] = _visible_architectures() or RELEASE_ARCHITECTURES
    return True


def _visible_architectures() -> str:
    import torch

    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return " ".join(f"{major}.{minor}" for major, minor in sorted(found))


def cuda_toolkit() -> tuple[Path | None, str]:
    """The CUDA toolkit to compile with, also for mmcv's build.

    Returns:
        Its root and ``''``; or None and the reason, if nvcc is missing or torch cannot use it:
        torch refuses toolkits of another major version than its own.
    """
    import torch

    if torch.version.cuda is None:
        return None, "torch is a build without CUDA"
    home = os.environ.get("CUDA_HOME")
    nvcc = os.path.join(home, "bin", "nvcc") if home else shutil.which("nvcc")
    if nvcc is None or not os.path.exists(nvcc):
        return None, "nvcc was not found"
    # nvcc may be a wrapper script far from its toolkit: ask it.
    plan = _run(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull)
    top = re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    release = re.search(r"release (\d+)", _run(nvcc, "-V"))
    if top is None or release is None:
        return None, f"{nvcc} does not run"
    if release[1] != torch.version.cuda.split(".")[0]:
        return None, f"nvcc is of CUDA {release[1]} and torch of CUDA {torch.version.cuda}"
    return Path(top[1].strip()).resolve(), ""


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout + done.stderr
