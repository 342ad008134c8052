"""Compile the CUDA sources with several toolkits, for every architecture that each supports.

Not part of the tests, because toolkits are large. With an installed toolkit::

    python ops/check_toolkits.py /usr/local/cuda/bin/nvcc

CUDA 11.8 and 12.4 are packages of Debian 12 and 13 (``nvidia-cuda-toolkit``), which need not be
installed: with ``contrib non-free`` in the list of sources, ::

    apt-get download nvidia-cuda-toolkit nvidia-cuda-dev   # Debian 13: and libcu++-dev
    for package in *.deb; do dpkg-deb -x $package root; done
    python ops/check_toolkits.py root

where ``root`` is searched for ``nvcc`` and the headers. Prints one line for each file and
architecture; the exit status is 1 if any of them fails to compile or gives a warning.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ops.build import SOURCES, _architectures_of

OLDEST = 75


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "toolkits", nargs="+", type=Path, help="an nvcc, or a folder to search for one"
    )
    parser.add_argument(
        "--architectures", nargs="+", type=int, help="such as 75 90 (default: all from 75 on)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="parallel compilers")
    args = parser.parse_args()
    failed = 0
    for place in args.toolkits:
        nvcc, flags = find_nvcc(place)
        version = subprocess.run([nvcc, "-V"], capture_output=True, text=True).stdout
        print(f"{nvcc}: {version.strip().splitlines()[-2]}", flush=True)
        architectures = [int(name.replace(".", "")) for name in _architectures_of(nvcc)]
        jobs = [
            (nvcc, flags, source, architecture)
            for source in sorted(SOURCES.glob("cuda/*.cu"))
            for architecture in architectures
            if architecture in (args.architectures or range(OLDEST, 1000))
        ]
        with ThreadPoolExecutor(args.jobs) as pool:
            for job, words in zip(jobs, pool.map(lambda job: compile_one(*job), jobs)):
                print(f"  {job[2].name:24}sm_{job[3]:<5}{words or 'ok'}", flush=True)
                failed += bool(words)
    print(f"{failed} failed")
    return 1 if failed else 0


def find_nvcc(place: Path) -> tuple[Path, list[str]]:
    """Return a compiler, and the flags with which it finds its parts in unpacked packages."""
    if place.is_file():
        return place, []
    found = [path for path in place.rglob("nvcc") if path.is_file() and is_program(path)]
    if not found:
        raise SystemExit(f"there is no nvcc in {place}")
    parts = {path.parent for name in ("cicc", "ptxas") for path in place.rglob(name)}
    os.environ["PATH"] = os.pathsep.join([*map(str, parts), os.environ["PATH"]])
    flags = ["-allow-unsupported-compiler"]  # a system has one host compiler, toolkits differ
    for compiler in ("/usr/bin/g++", "/usr/bin/clang++"):
        if os.path.exists(compiler):
            flags.append(f"-ccbin={compiler}")
            break
    flags += [f"-I{path.parent}" for path in place.rglob("cuda_runtime.h")]
    flags += [f"--libdevice-directory={path.parent}" for path in place.rglob("libdevice.10.bc")][:1]
    return found[0], flags


def is_program(path: Path) -> bool:
    """Return whether a file is a binary: Debian's ``/usr/bin/nvcc`` is a wrapper script."""
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def compile_one(nvcc: Path, flags: list[str], source: Path, architecture: int) -> str:
    """Compile one file for one architecture; return the compiler's output, empty on success."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "kernels.o")
        code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
        command = [nvcc, "-O3", "-std=c++17", code, f"-I{SOURCES}", *flags, "-c", source]
        done = subprocess.run([*command, "-o", target], capture_output=True, text=True)
        said = (done.stdout + done.stderr).strip()
        return said or ("" if done.returncode == 0 else f"status {done.returncode}")


if __name__ == "__main__":
    sys.exit(main())
