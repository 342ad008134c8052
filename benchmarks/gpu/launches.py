"""How the host code would run a scan: which kernels, how many blocks, with which parameters.

The host code itself is asked: ``launches.cpp`` is a device that only takes notes.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from .machine_code import short_name
from .multiprocessor import Device
from .operands import Launch, Region
from .prediction import Bulk

if TYPE_CHECKING:
    from problems import Scan

SOURCES = Path(__file__).resolve().parents[2] / "ops" / "csrc"


class HostCode:
    """The compiled host code.

    Args:
        folder: Where the program goes.
        sources: The folder of the C++ sources.

    Raises:
        subprocess.CalledProcessError: If it does not compile.
    """

    def __init__(self, folder: Path, sources: Path = SOURCES) -> None:
        self._program = folder / "launches"
        compiler = os.environ.get("CXX", "g++")
        files = (Path(__file__).with_suffix(".cpp"), *(sources / "cuda").glob("*_host.cpp"))
        subprocess.run(
            [compiler, "-std=c++17", "-O1", f"-I{sources}", *files, "-o", self._program],
            check=True,
        )

    def work(self, scan: Scan, dtype: str, direction: str, device: Device) -> list[Launch | Bulk]:
        """What one pass along the routes of a cross scan asks of the device, in order.

        Args:
            scan: What to scan.
            dtype: ``fp32``, ``fp16`` or ``bf16``: of x, x_dbl and their gradients; y is float32.
            direction: ``forward`` or ``backward``.
            device: The GPU, to which the host code fits its launches.
        """
        sizes = (scan.batch, scan.routes, scan.channels, scan.d_state, scan.length, scan.dt_rank)
        words = (device.multiprocessors, device.shared_bytes, direction, dtype, *sizes)
        printed = subprocess.run(
            [self._program, *map(str, words)], check=True, capture_output=True, text=True
        ).stdout
        lines = [line.split(maxsplit=1) for line in printed.splitlines()]
        # The lists of visits are emptied with -1: heads, one for each pixel, then ends.
        lists = {int(rest.split()[0]) for kind, rest in lines if kind == "fill"}
        regions = []
        for kind, rest in lines:
            if kind == "array":
                name, base, size = rest.split()
                is_table = name == "routes" or (name == "scratch" and int(base) in lists)
                counted = scan.routes * scan.length if is_table else 0
                regions.append(Region(name, int(base), int(size), counted, scan.length))
        return [_item(kind, rest, tuple(regions)) for kind, rest in lines if kind != "array"]


def _item(kind: str, rest: str, regions: tuple[Region, ...]) -> Launch | Bulk:
    if kind == "fill":
        return Bulk("fill", int(rest.split()[2]))
    if kind == "product":
        batch, rows, inner, columns = map(int, rest.split())
        elements = batch * (rows * inner + inner * columns + rows * columns)
        return Bulk("matrix product", 4 * elements, 2 * batch * rows * inner * columns)
    blocks, threads, shared, parameters, kernel = rest.split(maxsplit=4)
    return Launch(
        short_name(kernel),
        *map(int, (blocks, threads, shared)),
        bytes.fromhex(parameters),
        regions,
    )
