"""How the host code would run a scan: which kernels, how many blocks, with which parameters.

The host code itself is asked, compiled without CUDA over the shim of the tests (``launches.cpp``).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from problems import Scan

from .execution import Launch, Region
from .machine_code import demangle

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = ROOT / "ops" / "csrc"
SHIM = ROOT / "tests" / "cuda_on_cpu"


class HostCode:
    """The compiled host code.

    Args:
        folder: Where the program goes.

    Raises:
        subprocess.CalledProcessError: If it does not compile.
    """

    def __init__(self, folder: Path) -> None:
        self._program = folder / "launches"
        folders = [HERE, SHIM / "shim", SHIM, SOURCES]
        subprocess.run(
            [
                *(os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-no-pie"),
                *("-Wno-unknown-pragmas", *(f"-I{f}" for f in folders), "-o", self._program),
                *(HERE / "launches.cpp", SHIM / "shim" / "block.cpp"),
                *("-x", "c++", *sorted((SOURCES / "cuda").glob("*.cu"))),
            ],
            check=True,
        )
        printed = self._run("nm", self._program)
        symbols = [line.split()[::2] for line in printed if len(line.split()) == 3]
        self._symbols = {int(address, 16): symbol for address, symbol in symbols}

    @staticmethod
    def _run(*words: str | Path) -> list[str]:
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        return done.stdout.splitlines()

    def launches(self, scan: Scan, dtype: str, direction: str) -> list[Launch]:
        """The kernels of one pass along the routes of a cross scan, in order.

        Args:
            scan: What to scan.
            dtype: ``fp32``, ``fp16`` or ``bf16``: of x, x_dbl and their gradients; y is float32.
            direction: ``forward`` or ``backward``.
        """
        sizes = (scan.batch, scan.routes, scan.channels, scan.d_state, scan.length, scan.dt_rank)
        lines = [
            line.split() for line in self._run(self._program, direction, dtype, *map(str, sizes))
        ]
        regions = tuple(
            Region(name, int(base), int(size), scan.length if name == "routes" else 0)
            for kind, name, base, size in (words for words in lines if words[0] == "array")
        )
        found = [words[1:] for words in lines if words[0] == "launch"]
        names = demangle(self._symbols[int(kernel, 16)] for kernel, *_ in found)
        return [
            Launch(
                names[self._symbols[int(kernel, 16)]],
                *(int(n) for n in (blocks, threads, shared)),
                bytes.fromhex(parameters),
                regions,
            )
            for kernel, blocks, threads, shared, parameters in found
        ]
