"""How long one streaming multiprocessor takes for the warps it holds, instruction by instruction.

Warps issue in order. An instruction waits for the stall of the one before it, for its scoreboards,
and for its pipe; each of four schedulers issues one a cycle. Global memory is a queue that serves
so many bytes a cycle, behind a latency. Throughputs are those that NVIDIA publishes; latencies are
rounded values of published microbenchmarks. No cache is modelled: see traffic.py for what DRAM
serves.
"""

from __future__ import annotations

import heapq
import math
import random
from array import array
from collections import Counter
from dataclasses import dataclass

from .execution import Trace
from .machine_code import Instruction, Kernel


@dataclass(frozen=True)
class Device:
    """What the model knows of a GPU."""

    name: str
    multiprocessors: int
    clock: float  # Hz
    bandwidth: float  # of DRAM, bytes/s, as kernels reach it
    l2_bytes: float  # that data in use may take
    l2_bytes_per_cycle: float = 64  # and multiprocessor
    specials_per_cycle: int = 16  # exponentials and the like, of a multiprocessor
    operations: float = 40e12  # floating-point, a second, as float32 matrix products reach
    registers: int = 65536
    shared_bytes: int = 227 * 1024
    warps: int = 64
    blocks: int = 32
    launch_seconds: float = 2e-6  # from the end of one kernel to full speed of the next

    def floor_seconds(self, traffic: int, special: int) -> float:
        """Time that so many bytes of DRAM and special-function operations take at least."""
        specials_per_second = self.multiprocessors * self.specials_per_cycle * self.clock
        return max(traffic / self.bandwidth, special / specials_per_second)


H100 = Device("H100", 132, 1.755e9, 3.0e12, 40e6)

SCHEDULERS = 4
ROUNDS = 5  # of a loop to simulate of a long trace
GLOBAL_LATENCY = 450  # cycles: between a hit in L2 (270) and DRAM (650)
SPREAD = 0.3  # of it, either way

# Pipe: the cycles that it is busy with a warp instruction, cycles until the result is there.
PIPES = {
    "fma": (1, 4),  # two halves of 16 lanes
    "fma heavy": (2, 5),  # integer multiplication: one half only
    "alu": (2, 5),
    "special": (8, 22),
    "uniform": (1, 8),
    "constant": (4, 32),
    "system": (1, 20),
    "control": (0, 5),
    "memory": (2, 28),  # the issue side; see also the unit that the schedulers share
}
_PIPE_OF = {
    "fma": "FFMA FMUL FADD HFMA2 HADD2 HMUL2",
    "fma heavy": "IMAD",
    "special": "MUFU F2I I2F F2F POPC FLO",
    "constant": "LDC",
    "system": "S2R S2UR CS2R R2UR VOTEU",
    "control": "BRA BSSY BSYNC WARPSYNC NOP EXIT CALL RET BREAK DEPBAR LDGDEPBAR BAR MEMBAR YIELD",
    "memory": "LDG STG LD ST LDS STS LDL STL LDGSTS SHFL ATOM ATOMG ATOMS RED REDG",
}
PIPE_OF = {name: pipe for pipe, names in _PIPE_OF.items() for name in names.split()}


def pipe_of(ins: Instruction) -> str:
    """The pipe that executes an instruction."""
    known = PIPE_OF.get(ins.name)
    return known or ("uniform" if ins.name.startswith("U") else "alu")


def resident_blocks(kernel: Kernel, threads: int, shared: int, device: Device) -> int:
    """Blocks that a multiprocessor holds at once."""
    warps = math.ceil(threads / 32)
    registers = math.ceil(kernel.registers * 32 / 256) * 256  # of a warp
    shared_bytes = max(kernel.shared, 1024) + shared  # 1 KiB is the system's
    return min(
        device.blocks,
        device.warps // warps,
        device.registers // (registers * warps),
        device.shared_bytes // shared_bytes,
    )


@dataclass(frozen=True)
class Transfer:
    """What one memory instruction moves for a whole warp."""

    is_global: bool
    waves: int  # cycles of the load/store unit
    bytes: int  # of global memory, in sectors of 32
    dram: float  # the part of them that DRAM moves


class Multiprocessor:
    """A multiprocessor that runs some blocks of one kernel.

    Args:
        kernel: What runs.
        transfers: Of its memory instructions, by index.
        device: The GPU.
        bytes_per_cycle: The multiprocessor's share of DRAM.
    """

    def __init__(
        self,
        kernel: Kernel,
        transfers: dict[int, Transfer],
        device: Device,
        bytes_per_cycle: float,
    ) -> None:
        self.code = [
            (i.stall or 1, i.sets, i.frees, i.waits, pipe_of(i), i.name) for i in kernel.code
        ]
        self.groups_left = {
            i: int(ins.operands[1], 0)
            for i, ins in enumerate(kernel.code)
            if ins.opcode == "DEPBAR.LE"
        }
        self.transfers = transfers
        self.device = device
        self.bytes_per_cycle = bytes_per_cycle

    def cycles(self, traces: list[Trace], blocks: int, budget: int = 150_000) -> float:
        """Cycles until ``blocks`` blocks, of one warp a trace, are done.

        Args:
            traces: Of the warps of a block.
            blocks: That run at once.
            budget: Instructions to simulate all of. Of longer traces the start is simulated, then
                a piece from the middle again and again; the whole runs at the speed of this.
        """
        total = blocks * sum(len(t.steps) for t in traces)
        if total <= budget:
            warps = [_Warp(t.steps, block) for block in range(blocks) for t in traces]
            return self._run(warps, len(traces), None)[0]
        warps = []
        pieces = self._rounds(traces)
        for block in range(blocks):
            for number, steps in enumerate(t.steps for t in traces):
                if pieces is None:
                    piece = max(1, len(steps) * budget // (4 * total))
                    first, begin = piece, (len(steps) - piece) // 2
                    end = begin + piece
                else:
                    first, begin, end = pieces[number]
                warps.append(_Warp(steps[:first] + steps[begin:end], block, repeats_from=first))
        if pieces is not None:
            rounds = sum(len(w.steps) - w.repeats_from for w in warps)
            budget = sum(w.repeats_from for w in warps) + ROUNDS * rounds
        end, begin, issued = self._run(warps, len(traces), budget)
        left = total - sum(w.repeats_from for w in warps)
        return begin + left * (end - begin) / issued

    def _rounds(self, traces: list[Trace]) -> list[tuple[int, int, int]] | None:
        """Of each warp where its outermost loop begins, and a round of it from the middle.

        A piece that is no whole round would hold too much or too little of what the block does
        once a round. Rounds are told by the barrier that comes up least, but again and again.
        """
        counts = Counter(s for s in traces[0].steps if s >= 0 and self.code[s][-1] == "BAR")
        often = [(n, step) for step, n in counts.items() if n >= 4]
        if not often:
            return None
        count, marker = min(often)
        found = []
        for trace in traces:
            places = [i for i, step in enumerate(trace.steps) if step == marker]
            if len(places) != count:
                return None
            found.append((places[0], places[count // 2], places[count // 2 + 1]))
        return found

    def _run(
        self, warps: list[_Warp], warps_of_block: int, budget: int | None
    ) -> tuple[float, float, int]:
        """Run the warps to their ends or, where they repeat a piece, for so many instructions.

        Returns:
            When the last ends; when the last came to its piece; instructions issued since then.
        """
        random_latency = random.Random(1)
        busy = [dict.fromkeys(PIPES, 0.0) for _ in range(SCHEDULERS)]
        issue = [0.0] * SCHEDULERS
        unit = queue = 0.0  # when the load/store unit, and global memory, are free
        at_barrier: dict[int, list[int]] = {}
        ready = [(0.0, i) for i in range(len(warps))]
        heapq.heapify(ready)
        end = begin = 0.0
        issued = entered = since = 0
        while ready and issued != budget:
            now, index = heapq.heappop(ready)
            warp, scheduler = warps[index], index % SCHEDULERS
            step = warp.steps[warp.at]
            stall, sets, frees, waits, pipe, name = self.code[step if step >= 0 else ~step]
            pipes = busy[scheduler]
            is_memory = pipe == "memory" and step >= 0
            start = max(now, issue[scheduler], pipes[pipe])
            for board in waits:
                start = max(start, warp.boards[board])
            if name == "DEPBAR" and step in self.groups_left:
                groups = warp.groups[: len(warp.groups) - self.groups_left[step]]
                start = max([start, *groups])
            if is_memory:
                start = max(start, unit - SCHEDULERS)
            if start > now:  # others may issue before
                heapq.heappush(ready, (start, index))
                continue
            issue[scheduler] = now + 1
            occupied, latency = PIPES[pipe]
            pipes[pipe] = now + occupied
            done = now + latency
            if is_memory:
                transfer = self.transfers.get(step)
                unit = max(unit, now) + (transfer.waves if transfer else 1)
                done = unit + latency
                if transfer is not None and transfer.is_global:
                    queue = max(queue, now) + max(
                        transfer.bytes / self.device.l2_bytes_per_cycle,
                        transfer.bytes * transfer.dram / self.bytes_per_cycle,
                    )
                    spread = 1 + SPREAD * random_latency.uniform(-1, 1)
                    done = queue + GLOBAL_LATENCY * spread
                    if name == "LDGSTS":
                        warp.copy_done = max(warp.copy_done, done)
                        done = now + 20
                    end = max(end, queue)
            elif pipe == "special":
                done = now + occupied + latency - 8
            elif name == "LDGDEPBAR":
                warp.groups.append(warp.copy_done)
            for board in sets:
                warp.boards[board] = max(warp.boards[board], done)
            for board in frees:
                warp.boards[board] = max(warp.boards[board], now + 12)
            warp.at += 1
            issued += 1
            if warp.at == warp.repeats_from and not warp.entered:
                warp.entered = True
                entered += 1
                if entered == len(warps):
                    begin, since = now, issued
            next_start = now + stall
            if warp.at == len(warp.steps):
                end = max(end, done)
                if not warp.repeats_from:
                    continue
                warp.at = warp.repeats_from
            if name == "BAR" and step >= 0:
                waiting = at_barrier.setdefault(warp.block, [])
                waiting.append(index)
                if len(waiting) == warps_of_block:
                    for other in waiting:
                        heapq.heappush(ready, (max(next_start, now + 6), other))
                    waiting.clear()
                continue
            heapq.heappush(ready, (next_start, index))
        return (end if budget is None else now), begin, issued - since


class _Warp:
    """A warp that runs its steps, and then those from ``repeats_from`` on without end."""

    __slots__ = ("at", "block", "boards", "copy_done", "entered", "groups", "repeats_from", "steps")

    def __init__(self, steps: array, block: int, repeats_from: int = 0) -> None:
        self.steps, self.block, self.repeats_from = steps, block, repeats_from
        self.at, self.entered = 0, False
        self.boards = [0.0] * 6
        self.copy_done = 0.0
        self.groups: list[float] = []
