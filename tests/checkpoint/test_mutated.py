"""Damaged and hostile checkpoint files: none crashes, hangs or runs anything."""

import argparse
import codecs
import io
import itertools
import pickle
import pickletools
import random
import signal
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import safetensors.torch
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from mmvssm.checkpoint.reading import CheckpointError, HostileFileError, Inert, read_checkpoint

SECONDS = 10  # per file; valid files of this size take milliseconds
COUNT = 280  # damaged at random


class Mutated(NamedTuple):
    """File and its expected outcome: ``hostile``, ``refused``, or ``any`` if it may be read."""

    path: Path
    kind: str
    expected: str


# Honest files


def released() -> dict:
    """Weights, averaged weights, optimizer, logs and options, as trainings save them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    weights = OrderedDict(net.state_dict(), half=torch.randn(2, 3).half(), count=torch.tensor(7))
    return dict(
        model=weights,
        model_ema=OrderedDict((name, value.clone()) for name, value in weights.items()),
        optimizer=optimizer.state_dict(),
        logs=dict(loss=HistoryBuffer([1.0, 2.0], [1, 1])),
        args=argparse.Namespace(lr=1e-3, names=["a", "b"]),
        epoch=3,
    )


def save_zip(path: Path, pickled: bytes, members: dict[str, bytes]) -> None:
    """Write an archive with another pickle and valid checksums."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, pickled if name.endswith("/data.pkl") else data)


def read_members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def split_legacy(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the bytes before the pickle of the content, the pickle, and the bytes after it."""
    stream, ends = io.BytesIO(data), [0]
    for _ in range(4):
        for _ in pickletools.genops(stream):
            pass
        ends.append(stream.tell())
    return data[: ends[3]], data[ends[3] : ends[4]], data[ends[4] :]


# Hostile pickles: operations that leave one value on the stack


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def late_name_of(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def hostile_operations(canary: Path) -> dict[str, bytes]:
    """Return pickles that create the file ``canary`` when loaded, in many ways."""
    path, command = text(str(canary)), text(f"touch {canary}")
    code = text(f"open({str(canary)!r}, 'w')")
    system = name_of("os", "system")
    namespace = call(name_of("argparse", "Namespace"))
    touch = b"](" + text("touch") + path + b"e"
    called = {
        command: "os.system posix.system nt.system os.path.os.system some_package.some_helper",
        code: "builtins.eval builtins.exec __builtin__.eval types.FunctionType types.CodeType"
        " timeit.timeit pdb.run",
        code + b"}": "runpy._run_code numpy.testing._private.utils.runstring",
        path: "runpy.run_path torch.load torch.serialization.load torch.jit.load numpy.load"
        " numpy.lib.npyio.load joblib.load",
        path + text("w"): "builtins.open _io.open io.FileIO",
        touch: "subprocess.Popen subprocess.check_output distutils.spawn.spawn",
        b"C\x01.": "torch.storage._load_from_bytes pickle.loads _pickle.loads dill.loads"
        " cloudpickle.loads",
        b"C\x01N": "marshal.loads",
        b"": "code.InteractiveInterpreter bdb.Bdb multiprocessing.Process setuptools.setup",
        b"N": "asyncio.run",
        code + text("a") + text("exec"): "builtins.compile",
        text("antigravity"): "builtins.__import__ importlib.import_module",
        text("libm.so.6"): "ctypes.CDLL",
        text("bye"): "sys.exit",
        text("a/b") + text("c"): "torch.hub.load",
        text("a") + code: "torch.utils.cpp_extension.load_inline",
        text("a") + command: "pydoc.pipepager",
        text("system"): "operator.attrgetter",
        text("system") + command: "operator.methodcaller",
        system + b"](" + command + command + b"e": "functools.reduce",
        system + b"](" + command + b"e": "builtins.map",
        text("file:///"): "webbrowser.open",
        b"](" + text("install") + text("a") + b"e": "pip.main",
        text("sh"): "pty.spawn",
        b"(" + text("localhost") + b"K\x01t": "socket.create_connection",
        text("/etc/hostname") + path: "shutil.copyfile",
        text("os") + text("system") + b"K\x01": "copyreg.add_extension",
    }
    kinds = {
        name: call(name_of(*name.rsplit(".", 1)), arguments)
        for arguments, names in called.items()
        for name in names.split()
    }
    get_attribute, popen = name_of("builtins", "getattr"), name_of("subprocess", "Popen")
    remembered = text("posix") + b"q\x900" + text("system") + b"q\x910"
    return {
        **kinds,
        "late name": call(late_name_of("os", "system"), command),
        "late name of the memo": call(remembered + b"h\x90h\x91\x93", command),
        "attribute of a module": call(late_name_of("argparse", "_os.system"), command),
        "attributes of a class": call(
            late_name_of("argparse", "Namespace.__init__.__globals__"), command
        ),
        "getattr of __import__": call(
            get_attribute, name_of("builtins", "__import__"), text("__call__")
        ),
        **{
            f"getattr of {kind}": call(call(get_attribute, owner, text(name)), command)
            for kind, owner, name in (
                ("a module", name_of("argparse", "_os"), "system"),
                ("a method", name_of("a", "Class"), "run"),
                ("an object, called", namespace, "__init__"),
            )
        },
        "getattr of a value": call(get_attribute, b"]", text("__class__")),
        "object called": call(namespace, command),
        "partial of os.system": call(call(name_of("functools", "partial"), system, command)),
        "partial called": call(call(name_of("functools", "partial"), name_of("a", "B"))),
        "nested calls": call(system, call(name_of("builtins", "eval"), code)),
        "INST": b"(" + command + b"ios\nsystem\n",
        "OBJ": b"(" + system + command + b"o",
        "OBJ of a function": b"(" + name_of("a", "run") + command + b"o",
        "NEWOBJ": popen + command + b"\x85\x81",
        "NEWOBJ_EX": popen + command + b"\x85}\x92",
        "copyreg.__newobj__": call(name_of("copyreg", "__newobj__"), popen, command),
        "BUILD of a class": name_of("torch.nn", "Module") + b"}" + text("forward") + b"Nsb",
        "BUILD of a module": name_of("sys", "modules") + b"}" + text("os") + b"Nsb",
        "items of an array": array(kind="O8", content=b"](" + call(system, command) + b"e"),
        "array of another class": call(
            name_of("numpy.core.multiarray", "_reconstruct"), popen, numbers((0,)), command
        ),
        "state that is called": namespace + b"}" + text("a") + call(system, command) + b"sb",
        "tensor of os.system": call(
            name_of("torch._utils", "_rebuild_parameter"), call(system, command), b"\x89", b"}"
        ),
        "as a key": b"}" + call(system, command) + b"Ns",
        "never used": call(system, command) + b"0N",
        "EXT1": b"\x82\x01",
        "EXT2": b"\x83\x01\x01",
        "EXT4": b"\x84\x01\x00\x00\x01",
    }


# Pickles that ask for too much, or for what there is not


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    key: str = "0",
    numel: int = 12,
    offset: int = 0,
    size: tuple[int, ...] = (4, 3),
    stride: tuple[int, ...] = (3, 1),
    storage: bytes = b"ctorch\nFloatStorage\n",
    view: bytes = b"N",
) -> bytes:
    """A tensor of the storage ``0``, which has 12 elements."""
    named = text("storage") + storage + text(key) + text("cpu")
    pid = b"(" + named + number(numel) + view + b"tQ"
    return call(
        name_of("torch._utils", "_rebuild_tensor_v2"),
        *(pid, number(offset), numbers(size), numbers(stride), b"\x89}"),
    )


def array(
    shape: tuple[int, ...] = (4, 3),
    kind: str = "f4",
    order: str = "<",
    content: bytes = b"B" + struct.pack("<I", 48) + bytes(48),
) -> bytes:
    """An array of numpy, of 48 bytes."""
    begun = call(
        name_of("numpy.core.multiarray", "_reconstruct"),
        *(name_of("numpy", "ndarray"), numbers((0,)), b"C\x01b"),
    )
    dtype = call(name_of("numpy", "dtype"), text(kind), b"\x89", b"\x88")
    dtype += b"(" + number(3) + text(order) + b"NNN" + number(-1) * 2 + number(0) + b"tb"
    return begun + b"(" + number(1) + numbers(shape) + dtype + b"\x89" + content + b"tb"


def buffer_array(
    shape: bytes, content: bytes = b"\x96" + struct.pack("<Q", 48) + bytes(48)
) -> bytes:
    """An array as the newest protocol stores it."""
    dtype = call(name_of("numpy", "dtype"), text("f4"), b"\x89", b"\x88")
    return call(name_of("numpy._core.numeric", "_frombuffer"), content, dtype, shape, text("C"))


def excessive_arrays() -> dict[str, bytes]:
    """Arrays whose bytes are not those of their shapes."""
    begun = array().split(b"(" + number(1))[0]
    long = b"B" + struct.pack("<I", 20_000) + bytes(20_000)
    shared = long + b"q\x90" + b"0](" + array((5000,), content=b"h\x90") * 1000 + b"e"
    encoded = (
        text("a" * 20_000)
        + b"q\x900]("
        + 1000 * call(name_of("_codecs", "encode"), b"h\x90", text("latin1"))
        + b"e"
    )
    return {
        "array of a huge shape": array((1 << 62, 1 << 62)),
        "array of an overflowing shape": array((1 << 32, 1 << 32)),
        "array of a huge empty shape": array((0, 1 << 62), content=b"C\x00"),
        "array of an overflowing empty shape": array((0, *[1 << 39] * 5), content=b"C\x00"),
        "array of a negative shape": array((-4, -3)),
        "array of many dims": array((1,) * 100, content=b"C\x04" + bytes(4)),
        "array of too few bytes": array((4, 4)),
        "array of too many bytes": array((4, 2)),
        "array of wide numbers": array(kind="f8"),
        "array of text": array(content=text("\u2603" * 48)),
        "array of no bytes": array(content=b"N"),
        "array of no state": begun + b"Nb",
        "array that is never filled": begun,
        "arrays of the same bytes": shared,
        "texts of the same bytes": encoded,
        "buffer of a huge shape": buffer_array(numbers((1 << 62, 4))),
        "buffer of no shape": buffer_array(text("C")),
        "buffer of too few bytes": buffer_array(numbers((4, 4))),
        "buffer of no bytes": buffer_array(numbers((4, 3)), b"N"),
        "array without arguments": call(name_of("numpy.core.numeric", "_frombuffer")),
    }


def excessive_operations(depth: int) -> dict[str, bytes]:
    """Return operations that no valid file contains; all of them are refused."""
    keys = b"}(" + b"".join(number(i) + b"N" for i in range(1000)) + b"u"
    return {
        "nested tuples": b")" + b"\x85" * depth,
        "nested lists": b"]" * depth + b"a" * (depth - 1),
        "nested dicts": b"}K\x00" * depth + b"N" + b"s" * depth,
        "list within itself": b"]q\x90h\x90a",
        "lists of the same lists": b"]q\x90" + b"0](" + b"h\x90h\x90eq\x900]" * 60,
        "lists of lists": b"N" + b"q\x900](h\x90h\x90h\x90e" * 100,
        "copies": keys + b"q\x900](" + call(name_of("builtins", "dict"), b"h\x90") * 10_000 + b"e",
        "bytes that are not there": b"\x8e" + struct.pack("<Q", 1 << 60),
        "text that is not there": b"\x8d" + struct.pack("<Q", 1 << 60),
        "number that is not there": b"\x8b" + struct.pack("<i", (1 << 31) - 1),
        "unknown memo": b"j\xff\xff\xff\x7f",
        "no mark": b"t" * 100,
        "no values": b"0" * 100,
        "call of a number": call(b"K\x01"),
        "wrong arguments": call(name_of("torch._utils", "_rebuild_tensor_v2")),
        "outer buffer": b"\x97",
        "negative offset": tensor(offset=-1),
        "offset behind the end": tensor(offset=1),
        "huge offset": tensor(offset=1 << 62),
        "negative size": tensor(size=(-4, 3)),
        "huge size": tensor(size=(1 << 62, 1 << 62)),
        "overflowing size": tensor(size=(1 << 32, 1 << 32)),
        "huge empty size": tensor(size=(0, 1 << 62)),
        "repeated numbers": tensor(size=(1 << 40,), stride=(0,)),
        "negative stride": tensor(stride=(-3, 1)),
        "huge stride": tensor(stride=(1 << 62, 1)),
        "too few strides": tensor(stride=(1,)),
        "many dims": tensor(size=(1,) * 100, stride=(1,) * 100),
        "no storage": tensor(key="missing"),
        "storage outside": tensor(key="../../../../../etc/passwd"),
        "larger storage": tensor(numel=13),
        "huge storage": tensor(numel=1 << 61),
        "negative storage": tensor(numel=-12),
        "storage of another type": tensor(storage=b"ctorch\nDoubleStorage\n", numel=6),
        "storage of no type": tensor(storage=b"ctorch\nNoStorage\n"),
        "storage of a number": tensor(storage=b"N"),
        "part that leaves its storage": tensor(
            view=b"(" + text("v") + number(4) + number(9) + b"t"
        ),
        "tensor that leaves its part": tensor(view=b"(" + text("v") + number(4) + number(8) + b"t"),
        "part of bytes": tensor(
            storage=b"ctorch.storage\nUntypedStorage\n",
            view=b"(" + text("v") + number(0) + number(12) + b"t",
        ),
        "strange persistent id": b"}Q",
        **excessive_arrays(),
    }


def collisions(count: int) -> bytes:
    """A dict whose keys would have the same hash."""
    prime = (1 << 61) - 1
    return b"}(" + b"".join(number(i * prime) + b"N" for i in range(count)) + b"u"


# Mutation


def with_entry(pickled: bytes, operations: bytes) -> bytes:
    """Return a pickle of a dict with one more entry at the end."""
    return pickled[:-1] + text("extra") + operations + b"s."


def within_optimizer(pickled: bytes, operations: bytes) -> bytes:
    """Return a pickle with ``operations`` at the start of the optimizer's state."""
    mark = text("optimizer")
    start = pickled.index(mark) + len(mark)
    start += 2 if pickled[start : start + 1] == b"q" else 5  # the name's place in the memo
    return pickled[:start] + operations + b"0" + pickled[start:]


def shuffle_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip bits, or cut off, remove, double, insert or overwrite a part."""
    start = rng.randrange(len(data))
    part = data[start : start + rng.choice((1, 4, 30, 300))]
    behind = data[start + len(part) :]
    way = rng.randrange(6)
    if way == 0:
        flipped = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if way == 1:
        return data[:start]
    middle = [b"", part * 2, rng.randbytes(len(part)) + part, bytes(len(part))][way - 2]
    return data[:start] + middle + behind


def change_numbers(pickled: bytes, rng: random.Random) -> bytes:
    """Other sizes, strides, offsets and element counts."""
    places = [
        place for operation, _, place in pickletools.genops(pickled) if operation.name == "BININT1"
    ]
    for place in sorted(rng.sample(places, rng.choice((1, 2, 4))), reverse=True):
        value = rng.choice((0, 1, 5, 255, -1, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 70))
        pickled = pickled[:place] + number(value) + pickled[place + 2 :]
    return pickled


def mutated_files(folder: Path, count: int, seed: int = 0) -> Iterator[Mutated]:
    """Files in ``folder``: one for every known trick, and ``count`` that are damaged at random.

    Hostile ones would make ``folder / "canary"``.
    """
    rng = random.Random(seed)
    content = released()
    torch.save(content, folder / "honest.pth")
    torch.save(content, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(dict(content["model"]), folder / "honest.safetensors")
    data = (folder / "honest.pth").read_bytes()
    members = read_members(data)
    pickled = next(value for name, value in members.items() if name.endswith("/data.pkl"))
    old = (folder / "legacy.pth").read_bytes()
    before, old_pickled, behind = split_legacy(old)
    safe = (folder / "honest.safetensors").read_bytes()
    serial = itertools.count()

    def write(changed: bytes, kind: str, expected: str, suffix: str = ".pth") -> Mutated:
        path = folder / f"{next(serial):05d}{suffix}"
        path.write_bytes(changed)
        return Mutated(path, kind, expected)

    def write_zip(changed: bytes, kind: str, expected: str) -> Mutated:
        path = folder / f"{next(serial):05d}.pth"
        save_zip(path, changed, members)
        return Mutated(path, kind, expected)

    for kind, operations in hostile_operations(folder / "canary").items():
        place = rng.choice((with_entry, within_optimizer))
        yield write_zip(place(pickled, operations), kind, "hostile")
        yield write(before + place(old_pickled, operations) + behind, kind, "hostile")
        yield write(b"\x80\x04" + operations + b".", kind, "hostile", ".pkl")
    for kind, operations in excessive_operations(depth=100_000).items():
        yield write_zip(with_entry(pickled, operations), kind, "refused")
        yield write(before + with_entry(old_pickled, operations) + behind, kind, "refused")
    for kind, operations in {
        "bytearray of a size": call(name_of("builtins", "bytearray"), number(1 << 50)),
        "constructors of constructors": call(
            name_of("copyreg", "__newobj__"), *[name_of("copyreg", "__newobj__")] * 2000
        ),
        "large memo": b"Nr\xff\xff\xff\xff",
        "absurd memo": b"Np" + str(1 << 61).encode() + b"\n",
        "collisions": collisions(20_000),
        "whole storage": tensor(),
        "whole array": array(),
        "array of the other byte order": array(order=">"),
        "array of objects": array(kind="O8", content=b"](NNe"),
        "array of an absurd type": array(kind="f4" * 1000),
        "array of no type": array(kind="") + b"(" + number(1) + numbers((4,)) + b"N\x89C\x00tb",
        "array filled twice": array() + b"(" + number(1) + numbers((1,)) + b"N\x89C\x00tb",
    }.items():
        yield write_zip(with_entry(pickled, operations), kind, "any")
    for kind, changed in mutated_archives(members).items():
        yield write(changed, kind, "any" if kind == "paths" else "refused")
    ways = (
        lambda: write(shuffle_bytes(data, rng), "bytes of an archive", "any"),
        lambda: write_zip(shuffle_bytes(pickled, rng), "bytes of a pickle", "any"),
        lambda: write_zip(change_numbers(pickled, rng), "numbers of tensors", "any"),
        lambda: write(shuffle_bytes(old, rng), "bytes of the old format", "any"),
        lambda: write(before + change_numbers(old_pickled, rng) + behind, "old numbers", "any"),
        lambda: write(shuffle_bytes(safe, rng), "bytes of safetensors", "any", ".safetensors"),
        lambda: write(shuffle_bytes(safe[:400], rng) + safe[400:], "header", "any", ".safetensors"),
    )
    for make in itertools.islice(itertools.cycle(ways), count):
        yield make()


def mutated_archives(members: dict[str, bytes]) -> dict[str, bytes]:
    """Archives with other members than they should have."""

    def archive(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", compression) as file:
            for name, data in entries:
                file.writestr(name, data)
        return stream.getvalue()

    entries = list(members.items())
    folder = entries[0][0].partition("/")[0]
    names = [name for name, _ in entries]
    storage = names.index(f"{folder}/data/0")
    with_bomb = [*entries, (f"{folder}/data/99", bytes(10_000_000))]
    return {
        "compressed": archive(entries, zipfile.ZIP_DEFLATED),
        "bomb": archive(with_bomb, zipfile.ZIP_DEFLATED),
        "no pickle": archive([entry for entry in entries if not entry[0].endswith("data.pkl")]),
        "two pickles": archive([*entries, ("other/data.pkl", b"}.")]),
        "same names": archive([*entries, entries[storage]]),
        "no storage": archive(entries[:storage] + entries[storage + 1 :]),
        "short storage": archive([*entries[:storage], (names[storage], b"1234")]),
        "program": archive([*entries, (f"{folder}/constants.pkl", b").")]),
        "strange byte order": archive([*entries, (f"{folder}/byteorder", b"middle")]),
        "no member": archive([]),
        "paths": archive([*entries, ("../../canary", b"a"), ("/tmp/canary", b"a")]),
    }


# Tests

WATCHED = ("os.", "subprocess.", "ctypes.", "socket.", "pty.", "shutil.", "marshal.", "webbrowser.")
EXACTLY = {"exec", "compile", "import", "pickle.find_class", "code.__new__"}
seen: list[str] | None = None


def watch(event: str, arguments: tuple) -> None:
    if seen is not None and (event in EXACTLY or event.startswith(WATCHED)):
        seen.append(f"{event} {arguments!r:.200}")


@pytest.fixture
def audit():
    """Collects the audit events of Python; the hook cannot be removed from the interpreter."""
    global seen
    for name in ("cp437", "raw_unicode_escape"):  # imported when files first need them
        codecs.lookup(name)
    sys.addaudithook(watch)
    seen = []
    yield seen
    seen = None


class TooSlow(BaseException):
    """Exception that no error handler catches."""


@pytest.fixture
def clock():
    """Interrupts whatever takes longer than any file should."""

    def stop(*_):
        raise TooSlow

    previous = signal.signal(signal.SIGALRM, stop)
    yield lambda: signal.alarm(SECONDS)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


PLAIN = (str, int, float, complex, bytes, bytearray, type(None), set, frozenset)


def assert_plain(value) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            assert key is None or isinstance(key, str | int | float | bytes | Inert)
            assert_plain(part)
    elif type(value) in (list, tuple):
        for part in value:
            assert_plain(part)
    elif isinstance(value, torch.Tensor):
        assert type(value) is torch.Tensor and value.device.type == "cpu"
        value.clone()  # every number can be read
    else:
        assert isinstance(value, (*PLAIN, torch.Size, torch.device, torch.dtype, Inert))


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_mutated_files(tmp_path, audit, clock):
    outcomes = dict(read=0, refused=0, hostile=0)
    files = list(mutated_files(tmp_path, COUNT))
    for honest in ("honest.pth", "legacy.pth", "honest.safetensors"):
        assert_plain(read_checkpoint(tmp_path / honest))
    for path, kind, expected in files:
        audit.clear()
        clock()
        try:
            content = read_checkpoint(path)
        except HostileFileError as error:
            outcome = "hostile"
            assert "nothing was run" in str(error)
        except CheckpointError as error:
            outcome = "refused"
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            outcome = "read"
            assert_plain(content)
        assert audit == [], (path.name, kind)
        assert expected in (outcome, "any"), (path.name, kind, outcome)
        outcomes[outcome] += 1
    assert not (tmp_path / "canary").exists()
    assert sum(outcomes.values()) > 600 and min(outcomes.values()) > 20, outcomes


def test_hostile_files_are_hostile(tmp_path):
    """Reading the files without protection does create the canary."""
    operations = hostile_operations(tmp_path / "canary")
    for kind in ("os.system", "builtins.eval", "INST", "late name", "attribute of a module"):
        pickle.loads(b"\x80\x04" + operations[kind] + b".")
        (tmp_path / "canary").unlink()
