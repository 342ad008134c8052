"""What one lane of a warp executes: the machine code, run as far as addresses and branches need.

Integers, predicates, branches, shared and local memory are executed as the device does. Numbers
in global memory and floating-point results are zeros, since no branch of the kernels hangs on
them; route tables alone hold values. What comes out is the path through the code, and where it
reads and writes: exact counts for lane 0, which takes part in everything that its warp does.
"""

from __future__ import annotations

import operator
import re
import struct
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from .machine_code import Instruction, Kernel

MASK = 2**32 - 1
PARAMETERS = 0x210  # where they start in the constant bank of sm_90
SHARED_WINDOW = 0x7F01_0000_0000  # generic addresses of shared memory
LOCAL_TOP = 0x100_0000  # where the stack starts
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
COMPARE = {
    "EQ": operator.eq,
    "NE": operator.ne,
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
}
COMBINE = {"AND": operator.and_, "OR": operator.or_, "XOR": operator.xor}
Getter = Callable[[], int]


@dataclass(frozen=True)
class Region:
    """An array in global memory."""

    name: str
    base: int
    size: int  # bytes
    # Of tables of steps or pixels, int32: so many entries count from 0 to `period`, again and
    # again; those after them are -1. Other arrays hold zeros.
    counted: int = 0
    period: int = 1


@dataclass(frozen=True)
class Launch:
    """One start of a kernel."""

    kernel: str
    blocks: int
    threads: int
    shared: int  # bytes of dynamic shared memory
    parameters: bytes
    regions: tuple[Region, ...]


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


def signed(value: int, bits: int = 32) -> int:
    """The two's complement reading of ``value``."""
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


def to_bits(value: float) -> int:
    """Bits of a float32."""
    return struct.unpack("<I", struct.pack("<f", value))[0]


def from_bits(bits: int) -> float:
    """The float32 that these bits are."""
    return struct.unpack("<f", struct.pack("<I", bits & MASK))[0]


def lookup(table: int, *inputs: int) -> int:
    """Bitwise function of three words, given by its truth table."""
    a, b, c = inputs
    result = 0
    for row in range(8):
        if table >> row & 1:
            x = a if row & 4 else ~a
            y = b if row & 2 else ~b
            z = c if row & 1 else ~c
            result |= x & y & z
    return result & MASK


class Lane:
    """The state of one lane, and the kernel's code bound to it."""

    def __init__(self, kernel: Kernel, launch: Launch, block: int, thread: int) -> None:
        self.registers = {"R": [0] * 256, "UR": [0] * 64}
        self.predicates = {"P": [False] * 7 + [True], "UP": [False] * 7 + [True]}
        self.registers["R"][1] = LOCAL_TOP
        self.memory: dict[tuple[str, int], int] = {}
        self.trace = Trace()
        self.launch = launch
        self.special = {
            "SR_TID.X": thread,
            "SR_CTAID.X": block,
            "SR_LANEID": thread % 32,
            "SR_SWINHI": SHARED_WINDOW >> 32,
            "SR_CgaCtaId": 0,
            "SRZ": 0,
        }
        constants = struct.pack("<6I", launch.threads, 1, 1, launch.blocks, 1, 1)
        self.constants = constants.ljust(PARAMETERS, b"\0") + launch.parameters
        self.constants += bytes(64)
        self.position = {ins.address: i for i, ins in enumerate(kernel.code)}
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

    def predicate(self, text: str) -> Getter:
        """Reads a predicate, perhaps negated."""
        values, index = self._predicate(text.removeprefix("!"))
        if text.startswith("!"):
            return lambda: not values[index]
        return lambda: values[index]

    def _predicate(self, text: str) -> tuple[list[bool], int]:
        m = re.fullmatch(r"(U?P)(\d|T)", text)
        if m is None:
            raise NotImplementedError(f"predicate {text}")
        return self.predicates[m[1]], 7 if m[2] == "T" else int(m[2])

    def set_predicate(self, text: str) -> Callable[[bool], None]:
        """Writes a predicate; PT takes nothing."""
        values, index = self._predicate(text)

        def write(value: bool) -> None:
            if index < 7:
                values[index] = bool(value)

        return write

    def register(self, text: str) -> tuple[list[int], int]:
        """The file and the number of a register."""
        m = re.match(r"(U?R)(\d+|Z)", text)
        if m is None:
            raise NotImplementedError(f"register {text}")
        file = self.registers[m[1]]
        return file, len(file) - 1 if m[2] == "Z" else int(m[2])

    def value(self, text: str, words: int = 1) -> Getter:
        """Reads an integer operand of one word or two; a negated one is not cut to its words."""
        full = (1 << 32 * words) - 1
        if text.startswith("-") and not text[1].isdigit():
            inner = self.value(text[1:], words)
            return lambda: (~inner() & full) + 1
        if text.startswith("~"):
            inner = self.value(text[1:], words)
            return lambda: ~inner() & full
        if text.startswith("|"):
            inner = self.value(text.strip("|"), words)
            return lambda: abs(signed(inner()))
        if text.startswith("c["):
            return self.constant(text, words)
        if text.startswith(("R", "UR")):
            file, index = self.register(text)
            if words == 1 or index == len(file) - 1:
                return lambda: file[index]
            return lambda: file[index] | file[index + 1] << 32
        digits = re.fullmatch(r"-?(0x[0-9a-f]+|\d+)", text)
        number = int(text, 0) & full if digits else 0  # a float, like those in registers
        return lambda: number

    def constant(self, text: str, words: int = 1) -> Getter:
        """Reads the constant bank: block and grid sizes, then the parameters."""
        m = re.fullmatch(r"c\[0x0\]\[(?:(U?R\w+)(?:\.64|\.X4)?\+?)?(-?0x[0-9a-f]+)?\]", text)
        if m is None:
            raise NotImplementedError(f"constant {text}")
        index = self.value(m[1]) if m[1] else lambda: 0
        offset, constants = int(m[2] or "0", 0), self.constants

        def read() -> int:
            at = index() + offset
            return int.from_bytes(constants[at : at + 4 * words], "little")

        return read

    def result(self, text: str) -> Callable[[int], None]:
        """Writes a register."""
        file, index = self.register(text)
        if index == len(file) - 1:
            return lambda value: None

        def write(value: int) -> None:
            file[index] = value & MASK

        return write

    def result_pair(self, text: str) -> Callable[[int], None]:
        """Writes two registers in a row."""
        file, index = self.register(text)
        if index == len(file) - 1:
            return lambda value: None

        def write(value: int) -> None:
            file[index], file[index + 1] = value & MASK, value >> 32 & MASK

        return write

    # Instructions: what each does, as a function without arguments that returns the index of the
    # instruction to go on with, or None for the next.

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
                raise NotImplementedError(f"no meaning is known for {ins.opcode} {ins.operands}")

            return unknown
        return method(ins.opcode.split(".")[1:], list(ins.operands))

    def _outputs(self, operands: list[str]) -> tuple[str, list[Callable], list[str]]:
        """The register written, the predicates written after it, the other operands."""
        target, *rest = operands
        carries = []
        while rest and re.fullmatch(r"U?P[\dT]", rest[0]):
            carries.append(self.set_predicate(rest.pop(0)))
        return target, carries, rest

    def _carry_in(self, operands: list[str]) -> Getter:
        flags = [self.predicate(o) for o in operands]
        return lambda: sum(flag() for flag in flags)

    def _do_iadd3(self, modifiers, operands):
        target, carries, rest = self._outputs(operands)
        write = self.result(target)
        a, b, c = (self.value(o) for o in rest[:3])
        carry = self._carry_in(rest[3:]) if "X" in modifiers else lambda: 0

        def run() -> None:
            total = a() + b() + c() + carry()
            write(total)
            for i, set_carry in enumerate(carries, 1):
                set_carry(total >> 32 >= i)

        return run

    def _do_viadd(self, modifiers, operands):
        return self._do_iadd3(modifiers, [*operands, "RZ"])

    def _do_imad(self, modifiers, operands):
        target, carries, rest = self._outputs(operands)
        unsigned = "U32" in modifiers
        wide = "WIDE" in modifiers or "HI" in modifiers
        x, y = (self.value(o) for o in rest[:2])
        z = self.value(rest[2], 2 if wide else 1)
        carry = self._carry_in(rest[3:]) if "X" in modifiers else lambda: 0
        write = (self.result_pair if "WIDE" in modifiers else self.result)(target)
        shift = 32 if "HI" in modifiers else 0

        def run() -> None:
            a, b = x(), y()
            if not unsigned:
                a, b = signed(a & MASK), signed(b & MASK)
            total = a * b + z() + carry()
            write(total >> shift)
            for set_carry in carries:
                set_carry(total >> (64 if wide else 32) & 1)

        return run

    def _do_lea(self, modifiers, operands):
        target, carries, rest = self._outputs(operands)
        write = self.result(target)
        low, add = self.value(rest[0]), self.value(rest[1])
        extend = "SX32" in modifiers
        high_word = "HI" in modifiers
        high = self.value(rest.pop(2)) if high_word and not extend else lambda: 0
        shift = self.value(rest[2])
        carry = self._carry_in(rest[3:]) if "X" in modifiers else lambda: 0

        def run() -> None:
            pair = signed(low()) if extend else low() & MASK | high() << 32
            moved = pair << shift()
            total = (moved >> 32 if high_word else moved) & MASK
            total += add() + carry()
            write(total)
            for set_carry in carries:
                set_carry(total >> 32 > 0)

        return run

    def _do_shf(self, modifiers, operands):
        target, low, count, high = operands
        write, a, s, b = self.result(target), self.value(low), self.value(count), self.value(high)
        left, kind = modifiers[0] == "L", modifiers[-2] if "HI" in modifiers else modifiers[-1]
        take_high = "HI" in modifiers

        def run() -> None:
            pair = a() & MASK | (b() & MASK) << 32
            if kind.startswith("S"):
                pair = signed(pair, 64)
            amount = min(s(), 63 if "64" in kind else 32)
            moved = pair << amount if left else pair >> amount
            write(moved >> 32 if take_high else moved)

        return run

    def _do_lop3(self, modifiers, operands):
        flags = []
        while re.fullmatch(r"U?P[\dT]", operands[0]):
            flags.append(self.set_predicate(operands[0]))
            operands = operands[1:]
        write = self.result(operands[0])
        a, b, c = (self.value(o) for o in operands[1:4])
        table = int(operands[4], 0)

        def run() -> None:
            value = lookup(table, a(), b(), c())
            write(value)
            for flag in flags:
                flag(value != 0)

        return run

    def _do_plop3(self, modifiers, operands):
        writes = [self.set_predicate(o) for o in operands[:2]]
        inputs = [self.predicate(o) for o in operands[2:5]]
        tables = [int(o, 0) for o in operands[5:7]]

        def run() -> None:
            row = sum(bool(p()) << 2 - i for i, p in enumerate(inputs))
            values = [table >> row & 1 for table in tables]
            for write, value in zip(writes, values, strict=True):
                write(value)

        return run

    def _do_isetp(self, modifiers, operands):
        compare, combine = (
            COMPARE[modifiers[0]],
            COMBINE[modifiers[-2 if "EX" in modifiers else -1]],
        )
        unsigned, extended = "U32" in modifiers, "EX" in modifiers
        writes = [self.set_predicate(o) for o in operands[:2]]
        x, y = (self.value(o) for o in operands[2:4])
        other = self.predicate(operands[4])
        low = self.predicate(operands[5]) if extended else None

        def run() -> None:
            a, b = x() & MASK, y() & MASK
            if not unsigned:
                a, b = signed(a), signed(b)
            # of 64 bits: the high words decide, the low ones where these are equal
            value = low() if low is not None and a == b else compare(a, b)
            for write, outcome in zip(writes, (value, not value), strict=True):
                write(combine(bool(outcome), bool(other())))

        return run

    def _do_fsetp(self, modifiers, operands):
        # FSETP and HSETP2 write two, FCHK one; a third is read
        flags = [o for o in operands if re.fullmatch(r"P[\dT]", o)]
        writes = [self.set_predicate(o) for o in flags[:2]]

        def run() -> None:
            for write in writes:
                write(False)

        return run

    _do_hsetp2 = _do_fsetp
    _do_fchk = _do_fsetp

    def _do_sel(self, modifiers, operands):
        write = self.result(operands[0])
        a, b, choice = self.value(operands[1]), self.value(operands[2]), self.predicate(operands[3])
        return lambda: write(a() if choice() else b())

    def _do_vimnmx(self, modifiers, operands):
        write, choose_min = self.result(operands[0]), self.predicate(operands[-1])
        values = [self.value(o) for o in operands[1:-1]]
        read = (lambda v: v) if "U32" in modifiers else signed

        def run() -> None:
            both = [read(v() & MASK) for v in values]
            write(min(both) if choose_min() else max(both))

        return run

    _do_imnmx = _do_vimnmx

    def _do_viaddmnmx(self, modifiers, operands):
        write, choose_min = self.result(operands[0]), self.predicate(operands[4])
        a, b, c = (self.value(o) for o in operands[1:4])
        read = (lambda v: v) if "U32" in modifiers else signed

        def run() -> None:
            both = read(a() + b() & MASK), read(c() & MASK)
            write(min(both) if choose_min() else max(both))

        return run

    def _do_iabs(self, modifiers, operands):
        write, a = self.result(operands[0]), self.value(operands[1])
        return lambda: write(abs(signed(a() & MASK)))

    def _do_popc(self, modifiers, operands):
        write, a = self.result(operands[0]), self.value(operands[1])
        return lambda: write((a() & MASK).bit_count())

    def _do_flo(self, modifiers, operands):
        # the position of the highest bit, or what would shift it to the top
        write, a, from_top = self.result(operands[0]), self.value(operands[1]), "SH" in modifiers

        def run() -> None:
            position = (a() & MASK).bit_length() - 1
            write(31 - position if from_top and position >= 0 else position)

        return run

    def _do_brev(self, modifiers, operands):
        write, a = self.result(operands[0]), self.value(operands[1])
        return lambda: write(int(f"{a() & MASK:032b}"[::-1], 2))

    def _do_mov(self, modifiers, operands):
        write, a = self.result(operands[0]), self.value(operands[1])
        return lambda: write(a())

    _do_r2ur = _do_mov

    def _do_cs2r(self, modifiers, operands):
        value = self.special[operands[1]]
        write = (self.result if "32" in modifiers else self.result_pair)(operands[0])
        return lambda: write(value)

    def _do_s2r(self, modifiers, operands):
        write, value = self.result(operands[0]), self.special[operands[1]]
        return lambda: write(value)

    _do_s2ur = _do_s2r

    def _do_ldc(self, modifiers, operands):
        sizes = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8}
        size = next((sizes[m] for m in modifiers if m in sizes), 4)
        read = self.constant(operands[1], 2 if size == 8 else 1)
        write = (self.result_pair if size == 8 else self.result)(operands[0])
        return lambda: write(read() & (1 << 8 * size) - 1)

    def _do_prmt(self, modifiers, operands):
        write, a, selector, b = (
            self.result(operands[0]),
            *(self.value(o) for o in operands[1:4]),
        )

        def run() -> None:
            pair, chosen, value = a() & MASK | (b() & MASK) << 32, selector(), 0
            for i in range(4):
                nibble = chosen >> 4 * i & 15
                byte = pair >> 8 * (nibble & 7) & 255
                if nibble & 8:  # its sign, in all bits
                    byte = 255 * (byte >> 7)
                value |= byte << 8 * i
            write(value)

        return run

    def _do_p2r(self, modifiers, operands):
        write, rest, mask = self.result(operands[0]), self.value(operands[2]), int(operands[3], 0)
        flags = self.predicates["P"]

        def run() -> None:
            bits = sum(bool(flag) << i for i, flag in enumerate(flags[:7]))
            write(bits & mask | rest() & ~mask)

        return run

    def _do_r2p(self, modifiers, operands):
        a, mask, flags = self.value(operands[1]), int(operands[2], 0), self.predicates["P"]

        def run() -> None:
            for i in range(7):
                if mask >> i & 1:
                    flags[i] = bool(a() >> i & 1)

        return run

    def _do_vote(self, modifiers, operands):
        # as if every lane held what this one holds
        held = self.predicate(operands[-1])
        flags = [self.set_predicate(o) for o in operands[:-1] if re.fullmatch(r"U?P[\dT]", o)]
        ballots = [self.result(o) for o in operands[:-1] if re.match(r"U?R", o)]

        def run() -> None:
            for flag in flags:
                flag(held())
            for ballot in ballots:
                ballot(MASK if held() else 0)

        return run

    _do_voteu = _do_vote

    def _do_shfl(self, modifiers, operands):
        write, a = self.result(operands[1]), self.value(operands[2])
        return lambda: write(a())

    def _do_hfma2(self, modifiers, operands):
        write = self.result(operands[0])
        if operands[1:3] == ["-RZ", "RZ"]:  # the compiler's way to load a constant
            high, low = (struct.unpack("<H", struct.pack("<e", float(o)))[0] for o in operands[3:5])
            return lambda: write(high << 16 | low)
        return lambda: write(0)

    # Integer division goes by way of a reciprocal.

    def _do_mufu(self, modifiers, operands):
        write, a = self.result(operands[0]), self.value(operands[1].strip("|-"))
        if modifiers[0] != "RCP":
            return lambda: write(0)

        def run() -> None:
            value = from_bits(a())
            write(to_bits(1 / value) if value else 0x7F800000)

        return run

    def _do_i2f(self, modifiers, operands):
        words = 2 if "U64" in modifiers else 1
        write, a = self.result(operands[0]), self.value(operands[1].strip("|"), words)
        return lambda: write(to_bits(a()))

    def _do_i2fp(self, modifiers, operands):
        write = self.result(operands[0])
        return lambda: write(0)

    def _do_f2i(self, modifiers, operands):
        wide = "U64" in modifiers
        write, a = (self.result_pair if wide else self.result)(operands[0]), self.value(operands[1])

        def run() -> None:
            value = from_bits(a())
            write(int(value) if abs(value) < 2**64 else 0)

        return run

    # Branches.

    def _do_bra(self, modifiers, operands):
        target = self.position[int(operands[-1], 0)]
        if "DIV" in modifiers:  # taken where lanes have come apart
            return lambda: None
        conditions = [self.predicate(o) for o in operands[:-1]]
        if not conditions:
            return lambda: target
        return lambda: target if all(c() for c in conditions) else None

    def _do_call(self, modifiers, operands):
        target = self.position[int(operands[-1], 0)]
        return lambda: target

    def _do_ret(self, modifiers, operands):
        address = self.value(operands[0].split()[0])
        return lambda: self.position[address()]

    def _do_exit(self, modifiers, operands):
        return lambda: -1

    # Memory.

    def address(self, text: str) -> Getter:
        """The address in brackets: registers and an offset."""
        inner = re.fullmatch(r"(?:desc\[\w+\])?\[(.*)\]", text)
        if inner is None:
            raise NotImplementedError(f"address {text}")
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
