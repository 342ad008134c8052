"""The time of a pass over one problem: its launches one after the other.

A block from the middle of the grid stands for all. Its warps are traced (execution.py), what they
move is counted and shared out between DRAM and L2, and a multiprocessor runs them
(multiprocessor.py), first as many blocks as it holds, again and again, then those that are left.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from .execution import Access, Lane, Launch, Region, Trace
from .machine_code import Kernel
from .multiprocessor import Device, Multiprocessor, Transfer, resident_blocks

SECTOR = 32  # bytes that global memory moves at least
LANES = 32


def transfer_size(access: Access, neighbour: Access | None) -> tuple[int, int]:
    """Cycles of the load/store unit and bytes in sectors, for all lanes of a warp.

    Args:
        access: Of lane 0.
        neighbour: Of lane 1, whose distance all other lanes are taken to keep; None where lane 1
            does not come by.
    """
    stride = access.width if neighbour is None else abs(neighbour.first - access.first)
    if stride == 0:
        return 1, SECTOR
    span = LANES * (max(stride, access.width) if stride < SECTOR else SECTOR)
    banks = math.gcd(max(1, stride // 4), LANES) if stride > access.width else 1
    return max(banks, LANES * access.width // 128), span


@dataclass
class Sample:
    """A launch with the traces of the warps of one of its blocks."""

    launch: Launch
    kernel: Kernel
    traces: list[Trace]
    sizes: dict[int, tuple[int, int]]  # of memory instructions: transfer_size
    moved: Counter = field(default_factory=Counter)  # bytes by region and whether written

    @property
    def instructions(self) -> int:
        """Warp instructions of the whole launch."""
        return self.launch.blocks * sum(len(t.steps) for t in self.traces)


def sample(launch: Launch, kernel: Kernel) -> Sample:
    """Trace a block of the launch that does as much as most."""
    places = sorted({launch.blocks * i // 16 for i in (3, 6, 10, 13)})
    firsts = [(len(Lane(kernel, launch, b, 0).run().steps), b) for b in places]
    block = sorted(firsts)[len(firsts) // 2][1]
    warps = range(0, launch.threads, LANES)
    traces = [Lane(kernel, launch, block, thread).run() for thread in warps]
    neighbour = Lane(kernel, launch, block, 1).run().accesses if launch.threads > 1 else {}
    sizes, moved = {}, Counter()
    for trace in traces:
        for i, access in trace.accesses.items():
            sizes.setdefault(i, transfer_size(access, neighbour.get(i)))
            if access.region is not None:
                bytes_moved = sizes[i][1] * access.count * launch.blocks
                moved[access.region, access.write] += bytes_moved
    return Sample(launch, kernel, traces, sizes, moved)


class Traffic:
    """What DRAM moves of what the launches of one pass ask for.

    Where all arrays of the pass fit in L2, DRAM moves inputs and results once, and nothing of what
    one launch leaves for the next. Elsewhere every launch reads an array once, or twice if several
    blocks read the same and what the blocks at work touch does not fit in L2; and writes it once.
    """

    def __init__(self, device: Device, samples: list[Sample]) -> None:
        self._device = device
        arrays = {region for s in samples for region, _ in s.moved}
        self._fits = sum(r.size for r in arrays) <= device.l2_bytes
        self._seen: set[Region] = set()

    def of(self, s: Sample, blocks_at_once: int) -> dict[tuple[Region, bool], float]:
        """Bytes of one launch, by array and whether written; to be asked in order of launches."""
        share = min(1.0, blocks_at_once / s.launch.blocks)
        touched = share * sum(min(region.size, n) for (region, _), n in s.moved.items())
        result = {}
        for (region, write), asked in s.moved.items():
            passes = 1 if write or touched <= self._device.l2_bytes else 2
            if self._fits and (region in self._seen or region.name == "scratch"):
                passes = 0
            result[region, write] = min(asked, passes * region.size)
        self._seen.update(region for region, _ in s.moved)
        return result


@dataclass(frozen=True)
class LaunchTime:
    """What is predicted of one launch."""

    kernel: str
    blocks: int
    threads: int
    resident: int  # blocks that a multiprocessor holds
    instructions: int  # of warps
    dram_bytes: float
    seconds: float


def predict(launches: list[Launch], kernels: dict[str, Kernel], device: Device) -> list[LaunchTime]:
    """Predict every launch of a pass; the pass takes the sum."""
    samples = [sample(launch, kernels[launch.kernel]) for launch in launches]
    traffic = Traffic(device, samples)
    return [_predict(s, traffic, device) for s in samples]


def _predict(s: Sample, traffic: Traffic, device: Device) -> LaunchTime:
    launch = s.launch
    resident = resident_blocks(s.kernel, launch.threads, launch.shared, device)
    if resident == 0:
        raise ValueError(
            f"a block of {launch.kernel} with {launch.threads} threads, {launch.shared} bytes of"
            f" shared memory and {s.kernel.registers} registers a thread fits no multiprocessor"
        )
    moved = traffic.of(s, resident * device.multiprocessors)
    factors = {key: moved[key] / asked for key, asked in s.moved.items()}
    transfers = {}
    for trace in s.traces:
        for i, access in trace.accesses.items():
            is_global = access.region is not None
            dram = factors[access.region, access.write] if is_global else 0.0
            transfers[i] = Transfer(is_global, *s.sizes[i], dram)
    active = min(device.multiprocessors, launch.blocks)
    share = device.bandwidth / device.clock / active
    multiprocessor = Multiprocessor(s.kernel, transfers, device, share)
    waves, left = divmod(launch.blocks, resident * device.multiprocessors)
    cycles = 0.0
    if waves:
        cycles += waves * multiprocessor.cycles(s.traces, resident)
    if left:
        cycles += multiprocessor.cycles(s.traces, math.ceil(left / device.multiprocessors))
    return LaunchTime(
        launch.kernel,
        launch.blocks,
        launch.threads,
        resident,
        s.instructions,
        sum(moved.values()),
        cycles / device.clock + device.launch_seconds,
    )
