"""The time of a pass over one problem: its launches one after the other.

A block from the middle of the grid stands for all. Its warps are traced (execution.py), what they
move is counted and shared out between DRAM and L2, and a multiprocessor runs them
(multiprocessor.py), first as many blocks as it holds, again and again, then those that are left.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .execution import Lane, Trace
from .machine_code import Kernel
from .multiprocessor import Device, Multiprocessor, Transfer, resident_blocks
from .operands import Launch, Region

SECTOR = 32  # bytes that global memory moves at least
LANES = 32
BANKS = 32  # of shared memory, words wide
PROBE = 30_000  # instructions after which a lane has come by every access


def lane_addresses(addresses: Sequence[int]) -> list[int]:
    """Addresses of all lanes of a warp from those of lanes 0, 1, 2, 4, 8 and 16.

    Every bit of the number of a lane is taken to move the address by as much in all lanes.
    """
    first, *others = addresses
    return [
        first + sum(a - first for bit, a in enumerate(others) if lane >> bit & 1)
        for lane in range(LANES)
    ]


def transfer_size(addresses: Sequence[int], width: int) -> tuple[int, int]:
    """Cycles of the load/store unit and bytes in sectors, for all lanes of a warp."""
    words = {a // 4 + i for a in addresses for i in range(max(1, width // 4))}
    sectors = {(a + i) // SECTOR for a in addresses for i in range(0, width, 4)}
    cycles = max(Counter(word % BANKS for word in words).values())
    return cycles, SECTOR * len(sectors)


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
    # Spread by the golden ratio: even distances would all meet first chunks, which may do nothing.
    places = sorted({int(launch.blocks * (0.618034 * i % 1)) for i in range(1, 8)})
    lengths = [(len(Lane(kernel, launch, b, 0).run(PROBE).steps), b) for b in places]
    length, block = sorted(lengths)[len(lengths) // 2]
    warps = math.ceil(launch.threads / LANES)
    # of a long trace the first warp's stands for all but the last
    apart = range(warps) if length < PROBE else {0, warps - 1}
    found = {w: Lane(kernel, launch, block, LANES * w).run() for w in apart}
    traces = [found.get(w, found[0]) for w in range(warps)]
    probes = [
        Lane(kernel, launch, block, lane).run(PROBE).accesses
        for lane in (1, 2, 4, 8, 16)
        if lane < launch.threads
    ]
    sizes: dict[int, tuple[int, int]] = {}
    moved: Counter = Counter()
    for trace in traces:
        for i, access in trace.accesses.items():
            if i not in sizes:
                # a lane that does not come by is taken to keep the distance of a coalesced access
                firsts = [
                    probe[i].first if i in probe else access.first + access.width * 2**bit
                    for bit, probe in enumerate(probes)
                ]
                sizes[i] = transfer_size(lane_addresses([access.first, *firsts]), access.width)
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
class Bulk:
    """Work that runs at full speed: a copy, a fill, a matrix product in float32."""

    name: str
    bytes: int  # of global memory
    operations: int = 0  # floating-point


@dataclass(frozen=True)
class LaunchTime:
    """What is predicted of one launch."""

    name: str
    blocks: int
    threads: int
    resident: int  # blocks that a multiprocessor holds
    instructions: int  # of warps
    dram_bytes: float
    seconds: float


def predict(
    work: Sequence[Launch | Bulk], kernels: dict[str, Kernel], device: Device
) -> list[LaunchTime]:
    """Predict every launch of a pass; the pass takes the sum."""
    samples = [sample(w, kernels[w.kernel]) if isinstance(w, Launch) else w for w in work]
    traffic = Traffic(device, [s for s in samples if isinstance(s, Sample)])
    return [
        _predict(s, traffic, device) if isinstance(s, Sample) else _predict_bulk(s, device)
        for s in samples
    ]


def _predict_bulk(bulk: Bulk, device: Device) -> LaunchTime:
    seconds = max(bulk.bytes / device.bandwidth, bulk.operations / device.operations)
    return LaunchTime(bulk.name, 0, 0, 0, 0, bulk.bytes, seconds + device.launch_seconds)


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
