"""What one lane of a warp executes: the machine code, run as far as addresses and branches need.

Integers, predicates, branches, shared and local memory are executed as the device does. Numbers
in global memory and floating-point results are zeros, since no branch of the kernels hangs on
them; route tables alone hold values. What comes out is the path through the code, and where it
reads and writes: exact counts for lane 0, which takes part in everything that its warp does.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from .machine_code import Instruction, Kernel
from .operands import MASK, SHARED_WINDOW, Getter, Launch, Region, UnknownCodeError
from .operations import Operations

MAX_INSTRUCTIONS = 20_000_000
# The result is a float, hence zero here.
FLOATING = {
    "FADD",
    "FMUL",
    "FFMA",
    "FSEL",
    "FMNMX",
    "F2F",
    "F2FP",
    "HADD2",
    "HMUL2",
    "FSWZADD",
    "HMNMX2",
    "FRND",
}
NOTHING = {
    "NOP",
    "BSSY",
    "BSYNC",
    "WARPSYNC",
    "DEPBAR",
    "LDGDEPBAR",
    "BAR",
    "MEMBAR",
    "ERRBAR",
    "YIELD",
    "BREAK",
    "CCTL",
}
SPACES = {"LDS": "shared", "STS": "shared", "ATOMS": "shared", "LDL": "local", "STL": "local"}
LOADS = {"LDG", "LD", "LDS", "LDL", "ATOM", "ATOMG", "ATOMS"}
STORES = {"STG", "ST", "STS", "STL", "RED", "REDG"}


@dataclass
class Access:
    """What one instruction does to memory, over the whole path."""

    space: str  # "global", "shared"
    write: bool
    width: int  # bytes of a lane
    first: int  # the first address
    region: Region | None
    count: int = 0


@dataclass
class Trace:
    """The way of one lane through a kernel."""

    steps: array = field(default_factory=lambda: array("l"))  # indices; ~index: predicated off
    accesses: dict[int, Access] = field(default_factory=dict)  # by index of the instruction


class Lane(Operations):
    """The state of one lane, its memory, and the kernel's code bound to it."""

    def __init__(self, kernel: Kernel, launch: Launch, block: int, thread: int) -> None:
        super().__init__(kernel, launch, block, thread)
        self.memory: dict[tuple[str, int], int] = {}
        self.trace = Trace()
        self.launch = launch
        self.code = [
            (self.predicate(ins.guard) if ins.guard else None, self.bind(i, ins))
            for i, ins in enumerate(kernel.code)
        ]

    def run(self, limit: int | None = None) -> Trace:
        """Execute from the first instruction to the exit, or so many instructions."""
        at, code, steps = 0, self.code, self.trace.steps
        while at >= 0:
            guard, action = code[at]
            if guard is not None and not guard():
                steps.append(~at)
                at += 1
                continue
            steps.append(at)
            target = action()
            at = at + 1 if target is None else target
            if len(steps) == limit:
                break
            if len(steps) > MAX_INSTRUCTIONS:
                raise RuntimeError(
                    f"{self.launch.kernel} has not ended after {MAX_INSTRUCTIONS} instructions"
                )
        return self.trace

    # Operands.

    def bind(self, index: int, ins: Instruction) -> Callable[[], int | None]:
        """The action of one instruction."""
        name = ins.name
        if name in FLOATING:
            write = self.result(ins.operands[0])
            return lambda: write(0)
        if name in NOTHING:
            return lambda: None
        if name in LOADS or name in STORES or name == "LDGSTS":
            return self.access(index, ins)
        base = name.removeprefix("U")
        method = getattr(self, "_do_" + name.lower(), None) or getattr(
            self, "_do_" + base.lower(), None
        )
        if method is None:  # an error only where it is reached

            def unknown() -> None:
                raise UnknownCodeError(f"no meaning is known for {ins.opcode} {ins.operands}")

            return unknown
        return method(ins.opcode.split(".")[1:], list(ins.operands))

    def address(self, text: str) -> Getter:
        """The address in brackets: registers and an offset."""
        inner = re.fullmatch(r"(?:desc\[\w+\])?\[(.*)\]", text)
        if inner is None:
            raise UnknownCodeError(f"no meaning is known for the address {text}")
        offset, registers = 0, []
        for term in re.findall(r"-?[^+-]+", inner[1]):
            if re.fullmatch(r"-?0x[0-9a-f]+", term):
                offset = int(term, 0)
            else:
                name, _, suffix = term.partition(".")
                scale = {"X4": 4, "X8": 8, "X16": 16}.get(suffix, 1)
                registers.append((self.value(name, 2 if suffix == "64" else 1), scale))
        return lambda: offset + sum(read() * scale for read, scale in registers)

    def access(self, index: int, ins: Instruction) -> Callable[[], None]:
        """A load, a store or a copy."""
        widths = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
        width = next((widths[m] for m in ins.opcode.split(".") if m in widths), 4)
        write = ins.name in STORES
        where = next(o for o in reversed(ins.operands) if "[" in o and not o.startswith("c["))
        find = self.address(where)
        fixed = SPACES.get(ins.name)
        words = max(1, width // 4)
        moved = None if ins.name == "LDGSTS" else self._moved(ins, write)
        accesses, memory = self.trace.accesses, self.memory
        mask = 2**64 - 1 if fixed is None else MASK

        def run() -> None:
            at = find() & mask
            place = fixed
            if place is None:
                place = "shared" if at >> 32 == SHARED_WINDOW >> 32 else "global"
                if place == "shared":
                    at &= MASK
            known = accesses.get(index)
            if known is None:
                region = self.region(at, ins) if place == "global" else None
                known = accesses[index] = Access(place, write, width, at, region)
            known.count += 1
            if moved is None:
                return
            file, first = moved
            if write:
                if place != "global":
                    for i in range(words):
                        value = 0 if first == len(file) - 1 else file[first + i]
                        memory[place, at + 4 * i] = value
            elif first < len(file) - 1:
                for i in range(words):
                    if place != "global":
                        file[first + i] = memory.get((place, at + 4 * i), 0)
                    else:
                        file[first + i] = _stored(known.region, at + 4 * i)

        return run

    def _moved(self, ins: Instruction, write: bool) -> tuple[list[int], int]:
        return self.register(
            ins.operands[-1] if write else next(o for o in ins.operands if o.startswith("R"))
        )

    def region(self, address: int, ins: Instruction) -> Region:
        """The array that an address lies in."""
        for region in self.launch.regions:
            if region.base <= address < region.base + region.size:
                return region
        raise RuntimeError(
            f"{self.launch.kernel} reaches {address:#x}, outside every array, at"
            f" {ins.address:#x}: {ins.opcode} {', '.join(ins.operands)}"
        )


def _stored(region: Region | None, address: int) -> int:
    if region is None or not region.counted:
        return 0
    entry = (address - region.base) // 4
    return entry % region.period if entry < region.counted else MASK
