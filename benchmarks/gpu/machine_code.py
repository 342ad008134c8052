"""Machine code of the kernels: compiled with nvcc, read from what cuobjdump prints.

Beside the instruction itself, the 128 bits of an instruction hold what the compiler scheduled:
cycles to stall after it, and which of six scoreboards it sets and waits for.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURE = "sm_90"
_INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s*/\* 0x([0-9a-f]{16}) \*/")
_SECOND_HALF = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/")
_USAGE = re.compile(r"Function (\S+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)")


@dataclass(frozen=True)
class Instruction:
    """One instruction, as the disassembler writes it, with its schedule."""

    address: int
    guard: str  # the predicate it runs under, "" for always
    opcode: str  # with its modifiers: "IMAD.WIDE.U32"
    operands: tuple[str, ...]
    stall: int  # cycles before the warp may issue again
    sets: tuple[int, ...]  # scoreboards released when the result is there
    frees: tuple[int, ...]  # scoreboards released when the operands have been read
    waits: tuple[int, ...]  # scoreboards to wait for first

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel."""

    name: str  # as demangled, without namespaces and parameters
    code: tuple[Instruction, ...]
    registers: int
    stack: int
    shared: int  # bytes of static shared memory

    @property
    def spills(self) -> int:
        """Instructions that move registers to or from local memory."""
        counts = Counter(i.name for i in self.code)
        return counts["LDL"] + counts["STL"]


def find_tool(name: str) -> str:
    """Path of a tool of the CUDA toolkit: on PATH, or the copy in the wheel of Triton.

    Args:
        name: ``nvcc``, ``cuobjdump``.

    Raises:
        FileNotFoundError: If it is in neither place.
    """
    if path := shutil.which(name):
        return path
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        path = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name
        if path.exists():
            return str(path)
    raise FileNotFoundError(
        f"{name} is neither on PATH nor in the Triton wheel; install a CUDA toolkit, or for"
        " cuobjdump alone 'pip install nvidia-cuda-cuobjdump'"
    )


def compile_source(source: Path, *options: str) -> dict[str, Kernel]:
    """Compile a CUDA source for an H100, with further options; return its kernels by name.

    Raises:
        FileNotFoundError: If nvcc or cuobjdump is missing.
        subprocess.CalledProcessError: If the source does not compile.
    """
    nvcc, cuobjdump = find_tool("nvcc"), find_tool("cuobjdump")
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        options = ("-O3", "-std=c++17", f"-arch={ARCHITECTURE}", *options)
        subprocess.run([nvcc, *options, "-cubin", source, "-o", cubin], check=True)
        printed = [
            subprocess.run(
                [cuobjdump, what, cubin], check=True, capture_output=True, text=True
            ).stdout
            for what in ("-sass", "-res-usage")
        ]
    return parse(*printed)


def parse(sass: str, usage: str) -> dict[str, Kernel]:
    """Kernels by name, from what ``cuobjdump -sass`` and ``cuobjdump -res-usage`` print."""
    used = {m[1]: tuple(map(int, m.groups()[1:])) for m in _USAGE.finditer(usage)}
    bodies = dict(_bodies(sass.splitlines()))
    names = demangle(bodies)
    return {
        names[symbol]: Kernel(names[symbol], code, *used[symbol]) for symbol, code in bodies.items()
    }


def _bodies(lines: Iterable[str]) -> Iterator[tuple[str, tuple[Instruction, ...]]]:
    symbol, code, first = "", [], None
    for line in lines:
        if m := re.search(r"Function : (\S+)", line):
            if symbol:
                yield symbol, tuple(code)
            symbol, code = m[1], []
        elif m := _INSTRUCTION.match(line):
            first = m
        elif first is not None and (m := _SECOND_HALF.match(line)):
            code.append(_instruction(int(first[1], 16), first[2], int(m[1], 16)))
            first = None
    if symbol:
        yield symbol, tuple(code)


def _instruction(address: int, text: str, second_half: int) -> Instruction:
    guard = ""
    if text.startswith("@"):
        guard, text = text[1:].split(maxsplit=1)
    opcode, _, operands = text.partition(" ")
    schedule = second_half >> 41

    def scoreboard(bits: int) -> tuple[int, ...]:
        return (bits,) if bits < 6 else ()

    return Instruction(
        address,
        guard,
        opcode,
        tuple(o.strip().replace(".reuse", "") for o in operands.split(",")) if operands else (),
        stall=schedule & 15,
        sets=scoreboard(schedule >> 5 & 7),
        frees=scoreboard(schedule >> 8 & 7),
        waits=tuple(b for b in range(6) if schedule >> (11 + b) & 1),
    )


def demangle(symbols: Iterable[str]) -> dict[str, str]:
    """Short readable names: no namespaces, no return type, no parameters."""
    symbols = list(symbols)
    done = subprocess.run(
        ["c++filt", *symbols], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    return dict(zip(symbols, map(short_name, done), strict=True))


def short_name(demangled: str) -> str:
    """``void a::f<a::(anonymous namespace)::T, 4>(a::P)`` becomes ``f<T, 4>``."""
    name = demangled.replace("(anonymous namespace)::", "").removeprefix("void ")
    name = re.sub(r"\b\w+::", "", name)
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:i]
    return name
