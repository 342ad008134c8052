"""Registers, predicates and constants of one lane, read and written as operands name them."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from .machine_code import Kernel

MASK = 2**32 - 1
PARAMETERS = 0x210  # where they start in the constant bank of sm_90
SHARED_WINDOW = 0x7F01_0000_0000  # generic addresses of shared memory
LOCAL_TOP = 0x100_0000  # where the stack starts
Getter = Callable[[], int]


class UnknownCodeError(ValueError):
    """An instruction or operand whose meaning this model does not know."""


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


def signed(value: int, bits: int = 32) -> int:
    """The two's complement reading of ``value``."""
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


def to_bits(value: float) -> int:
    """Bits of a float32."""
    return struct.unpack("<I", struct.pack("<f", value))[0]


def from_bits(bits: int) -> float:
    """The float32 that these bits are."""
    return struct.unpack("<f", struct.pack("<I", bits & MASK))[0]


class Operands:
    """The registers of one lane.

    Args:
        kernel: The code.
        launch: How it was started.
        block: Number of the lane's block.
        thread: Number of the lane in its block.
    """

    def __init__(self, kernel: Kernel, launch: Launch, block: int, thread: int) -> None:
        self.registers = {"R": [0] * 256, "UR": [0] * 64}
        self.predicates = {"P": [False] * 7 + [True], "UP": [False] * 7 + [True]}
        self.registers["R"][1] = LOCAL_TOP
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

    def predicate(self, text: str) -> Getter:
        """Reads a predicate, perhaps negated."""
        values, index = self._predicate(text.removeprefix("!"))
        if text.startswith("!"):
            return lambda: not values[index]
        return lambda: values[index]

    def _predicate(self, text: str) -> tuple[list[bool], int]:
        m = re.fullmatch(r"(U?P)(\d|T)", text)
        if m is None:
            raise UnknownCodeError(f"no meaning is known for the predicate {text}")
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
            raise UnknownCodeError(f"no meaning is known for the register {text}")
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
            raise UnknownCodeError(f"no meaning is known for the constant {text}")
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
