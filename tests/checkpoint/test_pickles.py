"""The interpreter of pickles: plain values, objects that become inert, and its bounds."""

import argparse
import collections
import datetime
import decimal
import enum
import functools
import io
import itertools
import logging
import pathlib
import pickle
import random
import re
import types
import typing
import uuid

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer
from torch import nn

from mmvssm.checkpoint.reading import CheckpointError, HostileFileError, Inert
from mmvssm.checkpoint.reading.arrays import ArrayUnpickler
from mmvssm.checkpoint.reading.unpickler import MAX_DEPTH, MAX_OPERATIONS, Reference, Unpickler
from mmvssm.messages import printable

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def run(data: bytes):
    return Unpickler(io.BytesIO(data), len(data)).load()


class Options(dict):
    """Options as yacs and others keep them."""

    def __init__(self, values):
        super().__init__(values)
        self.__dict__["frozen"] = False


class small_options(dict):
    """Class with a lower-case name, as some projects have."""


class Color(enum.Enum):
    RED = 1


class Mode(enum.Flag):
    A = 1
    B = 2


class Outer:
    class Inner:
        def __init__(self):
            self.value = 1

        def method(self):
            pass


Pair = collections.namedtuple("Pair", "a b")

PLAIN = [None, True, -5, 1 << 200, 1.5, float("inf"), "äö☃\n", "", torch.bfloat16]
PLAIN += [[1, [2]], (1, (2, 3), ()), {"a": {1: 2.5, None: False, 3: ()}}]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_values(value, protocol):
    got = run(pickle.dumps(value, protocol))
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_dicts_of_other_classes(protocol):
    inner = collections.OrderedDict(b=1, a=[2])
    value = collections.OrderedDict(
        inner=inner,
        lists=collections.defaultdict(list, a=[1]),
        counts=collections.Counter("aab"),
    )
    value._metadata = dict(version=1)  # as state dicts have it
    assert run(pickle.dumps(value, protocol)) == value
    again = run(pickle.dumps([inner, inner], protocol))
    assert again[0] is again[1] and list(again[0]) == ["b", "a"]


#: Options, logs and configs of trainings, plain collections, and what stands for values of torch.
OBJECTS = [Options(dict(a=Options(dict(b=1)))), small_options(a=1), HistoryBuffer([1.0], [1])]
OBJECTS += [argparse.Namespace(lr=1, names=["a"]), types.SimpleNamespace(a=1)]
OBJECTS += [Config(dict(a=dict(b=1))), ConfigDict(a=dict(b=[1]))]
OBJECTS += [{1, "a"}, frozenset((1, 2.5)), 1 + 2j, slice(1, 2), range(5), ..., ValueError("a")]
OBJECTS += [iter([1, 2]), itertools.count(3), collections.deque([1], maxlen=3), Pair(1, 2)]
OBJECTS += [torch.Size([1, 2]), torch.device("cuda", 1), nn.functional.relu, nn.SiLU, nn.SiLU()]
OBJECTS += [functools.partial(nn.LayerNorm, eps=1e-6)]
OBJECTS += [functools.partial(nn.functional.gelu, approximate="tanh")]
#: Of numpy, and random states.
OBJECTS += [np.arange(5.0), np.asfortranarray(np.ones((2, 3))), np.ma.array([1, 2], mask=[0, 1])]
OBJECTS += [np.array([1, "a", None], dtype=object), np.float64(1.5), np.dtype("f4"), np.float32]
OBJECTS += [np.random.RandomState(0), np.random.default_rng(0), random.Random(0)]
#: Of the standard library, and classes within classes.
OBJECTS += [Color.RED, Mode.A, Mode.A | Mode.B, Outer.Inner(), Outer.Inner, Outer.Inner().method]
OBJECTS += [datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc), datetime.timedelta(1)]
OBJECTS += [pathlib.Path("/a/b"), decimal.Decimal("1.5"), uuid.UUID(int=5), re.compile("a+")]
OBJECTS += [logging.getLogger("a"), typing.Optional[int], list[int], type(None)]  # noqa: UP045


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_honest_objects_become_inert(value, protocol):
    """Objects become inert, while plain values next to them are kept."""
    try:
        data = pickle.dumps(["before", value, "behind"], protocol)
    except (TypeError, pickle.PicklingError, AttributeError):
        pytest.skip("Python does not store it in this protocol")
    before, value, behind = run(data)
    assert isinstance(value, Inert)
    assert (before, behind) == ("before", "behind")


#: Arrays of every type that tensors have, in both orders, without axes and without numbers.
ARRAYS = [np.arange(-3, 9).astype(kind) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8")]
ARRAYS += [np.arange(200, 206, dtype="u1").reshape(2, 3), np.array([True, False])]
ARRAYS += [np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)), np.arange(6).reshape(2, 3).T]
ARRAYS += [np.array(1.5, "f4"), np.zeros((0, 3), "f4"), np.arange(9.0)[::2]]
#: Of other types: text, objects, fields, dates, of the other byte order, and of a subclass.
OTHER_ARRAYS = [np.array(["a"]), np.array([1, None]), np.zeros(2, "i4,f4"), np.zeros(2, "M8[s]")]
OTHER_ARRAYS += [np.arange(3, dtype=">f4"), np.arange(3, dtype="u2"), np.ma.array([1], mask=[0])]


def run_with_arrays(value, protocol):
    data = pickle.dumps(value, protocol)
    return ArrayUnpickler(io.BytesIO(data), len(data)).load()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_arrays(array, protocol):
    """An array becomes one writable tensor, shared by all references to it."""
    got, again = run_with_arrays([array, array], protocol)
    expected = torch.from_numpy(array.copy())
    assert torch.equal(got, expected) and got.dtype == expected.dtype
    got.fill_(1)
    assert again.data_ptr() == got.data_ptr() and torch.equal(again, got)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("array", OTHER_ARRAYS, ids=lambda array: f"{type(array)}{array.dtype}")
def test_arrays_of_other_types_are_left_out(array, protocol):
    got, behind = run_with_arrays([array, "behind"], protocol)
    assert isinstance(got, Inert) and behind == "behind"


def test_inert_values_say_what_they_stand_for():
    value = run(pickle.dumps(argparse.Namespace()))
    assert repr(value) == "<argparse.Namespace, left out>"
    reference = run(pickle.dumps(Outer.Inner, 4))
    assert isinstance(reference, Reference) and reference.name == "Outer.Inner"


def test_keys_that_are_not_plain_are_never_hashed():
    """Ints of the same hash and deep tuples would hang or crash."""
    got = run(pickle.dumps({(1, 2): "a", 1 << 70: "b", "c": "d"}))
    assert list(got.values()) == ["a", "b", "d"]
    assert [isinstance(key, Inert) for key in got] == [True, True, False]
    nested = b")" + b"\x85" * 200_000
    assert [type(key) for key in run(b"}" + nested + b"Ns.")] == [Inert]


@pytest.mark.parametrize(
    "nested",
    [b")" + b"\x85" * 1_000_000, b"]" * 200_000 + b"a" * 199_999],
    ids=["tuples", "lists"],
)
def test_deep_nesting(nested):
    with pytest.raises(CheckpointError, match=f"nests values more than {MAX_DEPTH} deep"):
        run(nested + b".")


def test_depth():
    value = []
    for _ in range(MAX_DEPTH - 1):
        value = [value, 1]
    assert run(pickle.dumps(value)) == value
    assert run(pickle.dumps([[1, 2, 3]] * 1000)) == [[1, 2, 3]] * 1000
    with pytest.raises(CheckpointError, match="deep"):
        run(pickle.dumps([value]))
    shared = [()]
    for _ in range(60):
        shared = [shared, shared]
    with pytest.raises(CheckpointError, match="repeats the same values"):
        run(pickle.dumps(shared))
    value = {}
    value["a"] = [value]
    with pytest.raises(CheckpointError, match="within themselves"):
        run(pickle.dumps(value))


def test_number_of_operations():
    with pytest.raises(CheckpointError, match=f"more than {MAX_OPERATIONS} values"):
        run(b"N0" * (MAX_OPERATIONS // 2) + b"N.")


#: Names of modules and of what is in them.
RUNNING = """
    os:environ posix:system builtins:eval __builtin__:execfile importlib.util:find_spec
    builtins:print subprocess:Popen logging:os.system types:FunctionType
    a:Class.__init__.__globals__
"""
OF_OBJECTS = """
    yacs.config:CfgNode osmnx:Graph timm.models._registry:_Entry torch._utils:_rebuild_qtensor
    numpy.core.multiarray:_reconstruct types:SimpleNamespace operator:getitem
"""
OF_FUNCTIONS = """
    torch.nn.functional:relu torch:load torch.hub:load numpy:load logging.config:dictConfig
    a:Class.method numpy.core.multiarray:fromfile torch._utils:_import_dotted_name a:
"""


@pytest.mark.parametrize("origin", RUNNING.split())
def test_references_that_run_things(origin):
    with pytest.raises(HostileFileError, match="nothing was run"):
        Reference(*origin.split(":"))


@pytest.mark.parametrize("origin", [*OF_OBJECTS.split(), *OF_FUNCTIONS.split()])
def test_references_of_objects(origin):
    assert Reference(*origin.split(":")).is_harmless == (origin in OF_OBJECTS.split())


def test_names_in_messages_are_tame():
    with pytest.raises(HostileFileError) as caught:
        run(b"c\x1b[31m" + b"a" * 1000 + b"\nrun\n)R.")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200
    assert printable("a\x00\ud800☃") == r"a\x00\ud800\u2603"
