"""What the instructions of a lane do to its registers, as far as addresses and branches need it."""

from __future__ import annotations

import operator
import re
import struct
from collections.abc import Callable

from .operands import MASK, Getter, Operands, from_bits, signed, to_bits

COMPARE = {
    "EQ": operator.eq,
    "NE": operator.ne,
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
}
COMBINE = {"AND": operator.and_, "OR": operator.or_, "XOR": operator.xor}


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


class Operations(Operands):
    """The operations on registers: ``_do_NAME`` gives what an instruction does."""

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
        return self._store_flags("P", operands)

    def _do_up2ur(self, modifiers, operands):
        return self._store_flags("UP", operands)

    def _store_flags(self, kind, operands):
        write, rest, mask = self.result(operands[0]), self.value(operands[2]), int(operands[3], 0)
        flags = self.predicates[kind]

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
