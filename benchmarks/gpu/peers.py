"""The design of other implementations, by the same model.

Theirs is a scan over sequences (peers.cu), with copies around it: the map is written out along the
four routes, and the four results are added up. The copies are taken to run at full bandwidth.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from .machine_code import Kernel, compile_source
from .operands import Launch, Region
from .prediction import Bulk

if TYPE_CHECKING:
    from problems import Scan

SOURCE = Path(__file__).with_name("peers.cu")
CHUNK = 2048  # steps that a block takes at a time
THREADS = 128
TYPES = {"fp32": ("float", 4), "bf16": ("__nv_bfloat16", 2)}


def compile_peers() -> dict[str, Kernel]:
    """The kernels of that design by name."""
    return compile_source(SOURCE, "--use_fast_math")  # as they are built


def peer_pass(scan: Scan, dtype: str, direction: str) -> list[Launch | Bulk]:
    """What that design runs for one pass, in order.

    Args:
        scan: What to scan.
        dtype: ``fp32`` or ``bf16``, of the inputs; results are float32.
        direction: ``forward`` or ``backward``.
    """
    type_name, item = TYPES[dtype]
    maps = scan.batch * scan.length * scan.channels
    kernel = _launch(scan, f"peer_{direction}<{type_name}>", item)
    if direction == "forward":
        return [
            Bulk("cross scan", item * (maps + scan.elements)),
            Bulk("step projection", item * scan.elements),
            kernel,
            Bulk("cross merge", 4 * (scan.elements + maps)),
        ]
    gradients = 2 * scan.batch * scan.routes * scan.d_state * scan.length
    return [
        Bulk("cross merge, backward", 4 * (maps + scan.elements)),
        Bulk("zeros for dB and dC", 4 * gradients),
        kernel,
        Bulk("step projection, backward", 2 * item * scan.elements),
        Bulk("cross scan, backward", item * (scan.elements + maps)),
    ]


def _launch(scan: Scan, kernel: str, item: int) -> Launch:
    rows = scan.routes * scan.channels
    chunks = -(-scan.length // CHUNK)
    maps = scan.batch * scan.routes * scan.d_state * scan.length
    sizes = {
        "u": item * scan.elements,
        "delta": item * scan.elements,
        "B": item * maps,
        "C": item * maps,
        "A": 4 * rows * scan.d_state,
        "D": 4 * rows,
        "bias": 4 * rows,
        "y": 4 * scan.elements,
        "prefixes": 8 * scan.batch * rows * chunks * scan.d_state,
        "dy": 4 * scan.elements,
        "du": item * scan.elements,
        "ddelta": item * scan.elements,
        "dB": 4 * maps,
        "dC": 4 * maps,
        "dA": 4 * rows * scan.d_state,
        "dD": 4 * rows,
        "dbias": 4 * rows,
    }
    regions, base = [], 1 << 33
    for name, size in sizes.items():
        regions.append(Region(name, base, size))
        base += ((size >> 32) + 2) << 32
    parameters = struct.pack(
        f"<{len(regions)}Q4i",
        *(r.base for r in regions),
        *(rows, scan.channels, scan.d_state, scan.length),
    )
    return Launch(kernel, scan.batch * rows, THREADS, 0, parameters, tuple(regions))
