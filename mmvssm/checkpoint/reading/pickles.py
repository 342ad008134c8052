"""Pickles read without running anything that stands in them.

An :class:`Interpreter` carries their operations out on values of its own. Tensors come from the
functions that it is given, plain values are made here, and every other object becomes
:class:`~.references.Inert`. No name in a file is ever imported or looked up.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from ..messages import printable
from .errors import CheckpointError
from .operations import Window, operations
from .references import Inert, Reference, hostile
from .values import (
    MAX_OPERATIONS,
    as_key,
    check_depth,
    damaged,
    get_attribute,
    kind_of,
    make_complex,
    make_device,
    make_size,
)

_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


class Interpreter:
    """Carries out the operations of pickles.

    Args:
        rebuilders: Functions of our own by the module and name of those in the file that they
            stand for. They take the arguments in the file, whatever these are.
        load: Gives the value for a persistent id; without it, such ids are errors.
    """

    def __init__(
        self,
        rebuilders: Mapping[tuple[str, str], Callable[..., Any]] | None = None,
        load: Callable[[Any], Any] | None = None,
    ) -> None:
        self._rebuilders = {**self._own_rebuilders(), **(rebuilders or {})}
        self._load = load

    def run(self, window: Window) -> Any:
        """The value of the pickle at the start of ``window``, which then stands behind it.

        Raises:
            HostileFileError: If the pickle asks to run something.
            CheckpointError: If it is damaged, or larger or deeper than honest ones are.
        """
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._copies_left = window.size
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "invalid escape", DeprecationWarning)
                self._carry_out(operations(window))
            value = self._pop()
        finally:
            del self._stack, self._marks, self._memo
        check_depth(value)
        return value

    def _carry_out(self, decoded: Iterator[tuple[str, Any]]) -> None:
        for count, (name, argument) in enumerate(decoded):
            if count == MAX_OPERATIONS:
                raise CheckpointError(
                    f"holds more than {MAX_OPERATIONS} values beside its weights, which no"
                    " checkpoint does"
                )
            if name in _VALUES:
                self._stack.append(argument)
            elif (handler := _HANDLERS.get(name)) is not None:
                handler(self, argument)
            elif name == "STOP":
                break

    def _pop(self) -> Any:
        if not self._stack:
            raise damaged("takes a value where there is none")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise damaged("takes a value where there is none")
        return self._stack[-1]

    def _pop_mark(self) -> list[Any]:
        if not self._marks:
            raise damaged("closes a list that it has not opened")
        items, self._stack = self._stack, self._marks.pop()
        return items

    # Plain values

    def _constant(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self, _: None) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _drop(self, _: None) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _tuple_of(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._stack.append(tuple(reversed(items)))

    def _dict(self, _: None) -> None:
        items = self._pop_mark()
        self._stack.append({})
        self._set_items(items)

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif not _is_object(target):
            raise damaged(f"appends to {kind_of(target)}")

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if len(items) % 2:
            raise damaged("has a key without a value")
        if isinstance(target, dict):
            target.update(zip(map(as_key, items[::2]), items[1::2]))
        elif not _is_object(target):
            raise damaged(f"sets items of {kind_of(target)}")

    def _set_item(self, _: None) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _add(self, _: None) -> None:
        items, target = self._pop_mark(), self._top()
        if isinstance(target, set):
            target.update(map(as_key, items))
        elif not _is_object(target):
            raise damaged(f"adds to {kind_of(target)}")

    # The memo

    def _put(self, index: int) -> None:
        if not 0 <= index < 1 << 32:
            raise damaged("has an absurd memo")
        self._memo[index] = self._top()

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise damaged("refers to a value that it does not hold")
        self._stack.append(self._memo[index])

    # Classes, functions and objects

    def _global(self, text: str) -> None:
        module, _, name = text.partition(" ")
        self._stack.append(self._refer(module, name))

    def _stack_global(self, _: None) -> None:
        name, module = self._pop(), self._pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise damaged("has a name that is no text")
        self._stack.append(self._refer(module, name))

    def _refer(self, module: str, name: str) -> Any:
        reference = Reference(module, name)
        if reference.module == "torch" and reference.name in _DTYPES:
            return _DTYPES[reference.name]
        return reference

    def _reduce(self, _: None) -> None:
        arguments, function = self._pop(), self._pop()
        self._stack.append(self._call(function, arguments))

    def _object(self, _: None) -> None:
        items = self._pop_mark()
        if not items:
            raise damaged("makes an object of no class")
        self._stack.append(self._call(items[0], tuple(items[1:])))

    def _instance(self, text: str) -> None:
        arguments = tuple(self._pop_mark())
        self._global(text)
        self._stack.append(self._call(self._pop(), arguments))

    def _new_object(self, _: None) -> None:
        arguments, cls = self._pop(), self._pop()
        self._stack.append(self._call(cls, arguments, is_class=True))

    def _new_object_with_names(self, _: None) -> None:
        named, arguments, cls = self._pop(), self._pop(), self._pop()
        if not isinstance(named, dict):
            raise damaged("makes an object in no known way")
        self._stack.append(self._call(cls, arguments, is_class=True))

    def _call(self, function: Any, arguments: Any, is_class: bool = False) -> Any:
        """What stands for the value of a call; ``is_class``: only classes can stand there."""
        if not isinstance(function, Reference):
            if isinstance(function, Inert):
                raise hostile(f"run a function that it gets from {printable(function.origin)}")
            raise damaged(f"calls {kind_of(function)}")
        if not isinstance(arguments, tuple):
            raise damaged(f"calls {printable(function.origin)} in no known way")
        rebuild = self._rebuilders.get((function.module, function.name))
        if rebuild is not None:
            try:
                return rebuild(*arguments)
            except TypeError:  # too few or too many: the rebuilders check the values themselves
                raise damaged(
                    f"gives {len(arguments)} values to {printable(function.origin)}"
                ) from None
        if not (is_class or function.is_harmless):
            raise hostile(f"run {printable(function.origin)}")
        return Inert(function.origin)

    def _build(self, _: None) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Reference):
            raise hostile(f"change {printable(target.origin)}")
        if isinstance(target, Inert) and isinstance(state, dict) and "_parameters" in state:
            target.is_network = True

    def _extension(self, code: int) -> None:
        raise hostile(f"run extension {code} of Python's registry")

    def _out_of_band(self, _: None) -> None:
        raise CheckpointError("keeps values outside the file")

    def _persistent(self, pid: Any) -> None:
        if self._load is None:
            raise CheckpointError("keeps values outside the file")
        self._stack.append(self._load(pid))

    # Stand-ins for functions

    def _own_rebuilders(self) -> dict[tuple[str, str], Callable[..., Any]]:
        builtin = {
            "list": self._collection(list, list),
            "tuple": self._collection(tuple, tuple),
            "set": self._collection(set, lambda items: set(map(as_key, items))),
            "frozenset": self._collection(frozenset, lambda items: frozenset(map(as_key, items))),
            "dict": self._make_dict,
            "bytes": self._make_bytes,
            "bytearray": lambda *arguments: bytearray(self._make_bytes(*arguments)),
            "complex": make_complex,
            "getattr": get_attribute,
        }
        return {
            **{("builtins", name): rebuild for name, rebuild in builtin.items()},
            ("_codecs", "encode"): self._make_bytes,
            ("collections", "OrderedDict"): self._make_dict,
            ("collections", "Counter"): self._make_dict,
            ("collections", "defaultdict"): lambda _=None, *items: self._make_dict(*items),
            ("copyreg", "_reconstructor"): lambda cls, base, state: self._make(cls),
            ("copyreg", "__newobj__"): lambda cls, *arguments: self._make(cls, *arguments),
            ("copyreg", "__newobj_ex__"): lambda cls, arguments, named: self._make(cls),
            ("torch", "Size"): make_size,
            ("torch", "device"): make_device,
        }

    def _copy(self, size: int) -> None:
        """Count what is copied, lest a small file ask for copies of copies."""
        self._copies_left -= size
        if self._copies_left < 0:
            raise CheckpointError("asks for more memory than its size explains")

    def _collection(self, kind: type, make: Callable[[Any], Any]) -> Callable[..., Any]:
        def rebuild(*arguments: Any) -> Any:
            if not arguments:
                return kind()
            if len(arguments) > 1 or not isinstance(arguments[0], list | tuple | set | frozenset):
                return Inert(f"builtins.{kind.__name__}")
            self._copy(len(arguments[0]))
            return make(arguments[0])

        return rebuild

    def _make(self, cls: Any, *arguments: Any) -> Any:
        if isinstance(cls, Reference) and cls.module == "copyreg":  # which would never end
            raise damaged("makes an object of no class")
        return self._call(cls, arguments, is_class=True)

    def _make_dict(self, items: Any = ()) -> Any:
        if isinstance(items, dict):
            self._copy(len(items))
            return dict(items)
        if not isinstance(items, list | tuple):
            return Inert("builtins.dict")
        self._copy(len(items))
        if not all(isinstance(item, list | tuple) and len(item) == 2 for item in items):
            raise damaged("makes a dict of no pairs")
        return {as_key(key): value for key, value in items}

    def _make_bytes(self, text: Any = b"", encoding: Any = "latin1") -> Any:
        self._copy(len(text) if isinstance(text, str | bytes | bytearray) else 0)
        if isinstance(text, bytes | bytearray):
            return bytes(text)
        if isinstance(text, str) and encoding in ("latin1", "latin-1"):
            try:
                return text.encode("latin1")
            except UnicodeEncodeError:
                raise damaged("encodes text as bytes that it is not") from None
        raise damaged("makes bytes in no known way")


def _is_object(value: Any) -> bool:
    return isinstance(value, Inert) and not isinstance(value, Reference)


# Operations whose argument is the value.
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_HANDLERS: dict[str, Callable[[Interpreter, Any], None]] = {
    "NONE": lambda self, _: self._constant(None),
    "NEWTRUE": lambda self, _: self._constant(True),
    "NEWFALSE": lambda self, _: self._constant(False),
    "EMPTY_LIST": lambda self, _: self._constant([]),
    "EMPTY_TUPLE": lambda self, _: self._constant(()),
    "EMPTY_DICT": lambda self, _: self._constant({}),
    "EMPTY_SET": lambda self, _: self._constant(set()),
    "LIST": lambda self, _: self._constant(self._pop_mark()),
    "TUPLE": lambda self, _: self._constant(tuple(self._pop_mark())),
    "TUPLE1": lambda self, _: self._tuple_of(1),
    "TUPLE2": lambda self, _: self._tuple_of(2),
    "TUPLE3": lambda self, _: self._tuple_of(3),
    "FROZENSET": lambda self, _: self._constant(frozenset(map(as_key, self._pop_mark()))),
    "DICT": Interpreter._dict,
    "MARK": Interpreter._mark,
    "POP": Interpreter._drop,
    "POP_MARK": lambda self, _: self._pop_mark(),
    "DUP": lambda self, _: self._constant(self._top()),
    "APPEND": lambda self, _: self._append([self._pop()]),
    "APPENDS": lambda self, _: self._append(self._pop_mark()),
    "SETITEM": Interpreter._set_item,
    "SETITEMS": lambda self, _: self._set_items(self._pop_mark()),
    "ADDITEMS": Interpreter._add,
    "PUT": Interpreter._put,
    "BINPUT": Interpreter._put,
    "LONG_BINPUT": Interpreter._put,
    "MEMOIZE": lambda self, _: self._put(len(self._memo)),
    "GET": Interpreter._get,
    "BINGET": Interpreter._get,
    "LONG_BINGET": Interpreter._get,
    "GLOBAL": Interpreter._global,
    "STACK_GLOBAL": Interpreter._stack_global,
    "REDUCE": Interpreter._reduce,
    "OBJ": Interpreter._object,
    "INST": Interpreter._instance,
    "NEWOBJ": Interpreter._new_object,
    "NEWOBJ_EX": Interpreter._new_object_with_names,
    "BUILD": Interpreter._build,
    "EXT1": Interpreter._extension,
    "EXT2": Interpreter._extension,
    "EXT4": Interpreter._extension,
    "NEXT_BUFFER": Interpreter._out_of_band,
    "READONLY_BUFFER": Interpreter._out_of_band,
    "PERSID": Interpreter._persistent,
    "BINPERSID": lambda self, _: self._persistent(self._pop()),
}
