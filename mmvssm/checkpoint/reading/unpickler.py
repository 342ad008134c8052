"""Reading of pickles without importing or calling anything that they name.

The operations are carried out by the standard library's unpickler in Python, in which all
operations that look up names, call, set state or hash are replaced. Given functions create tensors,
dicts are created here, and every other object becomes :class:`Inert`.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, BinaryIO, ClassVar

import torch

from mmvssm.messages import printable

#: Limit of operations, beyond the logs, options and optimizer states of any training.
MAX_OPERATIONS = 5_000_000
#: Limit of nesting; deeper values could overflow the stack of code that walks through them.
MAX_DEPTH = 200
MAX_DIMS = 64  # limit of torch
MAX_EXTENT = 1 << 40  # limit of sizes and strides, also of empty tensors
Functions = Mapping[str, Callable[..., Any]]
NO_FUNCTIONS: Functions = MappingProxyType({})
_NEVER = ", which no checkpoint does"
_MAX_KEY = 1 << 60  # smaller ints are their own hashes, so that a file cannot make keys collide
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Modules renamed since Python 2.
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
#: Modules of the standard library whose classes benign files store; references to all others are
#: treated as attempts to run code.
_STANDARD = _words(
    """
    _codecs _collections_abc _decimal _random abc argparse array builtins collections contextlib
    copy copyreg csv dataclasses datetime decimal enum fractions functools inspect ipaddress
    itertools json logging math numbers pathlib queue random re statistics string struct time
    typing uuid warnings weakref zoneinfo
    """
)
#: Functions, and classes with lower-case names, that benign pickles call.
_HARMLESS = _words(
    """
    _codecs.encode _io.BytesIO _io.StringIO _operator.getitem _operator.or_ builtins.bool
    builtins.bytearray builtins.bytes builtins.complex builtins.dict builtins.enumerate
    builtins.float builtins.frozenset builtins.getattr builtins.int builtins.iter builtins.list
    builtins.long builtins.object builtins.range builtins.reversed builtins.set builtins.slice
    builtins.str builtins.tuple builtins.type builtins.xrange builtins.zip collections.deque
    copyreg.__newobj__ copyreg.__newobj_ex__ copyreg._reconstructor datetime.date datetime.datetime
    datetime.time datetime.timedelta datetime.timezone functools.partial itertools.chain
    itertools.count itertools.cycle itertools.islice itertools.product itertools.repeat
    logging.getLogger operator.getitem operator.or_ re._compile torch.device
    torch.serialization._get_layout types.GenericAlias types.MappingProxyType types.SimpleNamespace
    types.UnionType zoneinfo.ZoneInfo._unpickle
    """
)
_HARMLESS_PATTERN = re.compile(
    r"numpy\.(_?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)|random\._pickle\.\w+)"
    r"|numpy\.(dtype|ndarray|ma\.core\._mareconstruct)|torch\._utils\._rebuild_\w+"
    r"|.*\.__pyx_unpickle_\w+"  # Cython's classes
)


class CheckpointError(ValueError):
    """A file is not a checkpoint, is damaged, or lacks the requested content."""


class HostileFileError(CheckpointError):
    """A file would run code when loaded; none of it was run."""


def damaged(reason: object) -> CheckpointError:
    """Return the error for a damaged file."""
    return CheckpointError(f"is cut off or damaged ({reason}): download or copy it again")


def hostile(action: str) -> HostileFileError:
    """Return the error for a file that asks for ``action``."""
    return HostileFileError(
        f"asks to {action} when it is loaded; nothing was run; do not use this file"
    )


class Inert:
    """Placeholder for an object of class ``origin`` that is neither a tensor nor a plain value."""

    __slots__ = ("origin",)

    def __init__(self, origin: str) -> None:
        self.origin = origin

    def __repr__(self) -> str:
        return f"<{printable(self.origin)}, left out>"

    def extend(self, items: object) -> None:
        """Ignore items, such as those of subclasses of lists and sets."""

    append = extend


class Reference(Inert):
    """The name of a class or function.

    Raises:
        HostileFileError: If files name it only to run code.
    """

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = _RENAMED.get(module, module), name
        super().__init__(f"{self.module}.{name}")
        *owners, last = name.split(".")
        package = self.module.partition(".")[0]
        if self.origin not in _HARMLESS and (
            (package in sys.stdlib_module_names and package not in _STANDARD)
            or (package == "builtins" and not _is_class_name(last))
            # imports of a module are reachable as its attributes: `argparse`, `_os.system`
            or not all(map(_is_class_name, owners))
        ):
            raise hostile(f"run {printable(self.origin)}")

    @property
    def is_harmless(self) -> bool:
        """Whether benign files store objects as calls of it."""
        return (
            _is_class_name(self.name.rpartition(".")[2])
            or self.origin in _HARMLESS
            or _HARMLESS_PATTERN.fullmatch(self.origin) is not None
        )


def _is_class_name(name: str) -> bool:
    return name.lstrip("_")[:1].isupper()


def kind_of(value: object) -> str:
    """Describe a value for a message."""
    if isinstance(value, Reference):
        return f"a reference to {printable(value.origin)}"
    if isinstance(value, Inert):
        return f"an object of {printable(value.origin)}"
    return f"a value of type {type(value).__name__}"


class Unpickler(pickle._Unpickler):
    """Unpickler that runs no code of the file.

    Args:
        file: The file, at the position of the pickle.
        size: Size of the file, which limits the memory that the pickle can claim.
        functions: Replacements for functions named in the pickle, called with its arguments.
        load_storage: Function from persistent ids to values.
    """

    def __init__(
        self,
        file: BinaryIO,
        size: int,
        functions: Functions = NO_FUNCTIONS,
        load_storage: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(file, encoding="latin1")
        self._file, self._copies_left, self.persistent_load = file, size, load_storage
        dicts = ("builtins.dict", "collections.OrderedDict", "collections.Counter")
        self._functions = {**dict.fromkeys(dicts, self._dict), **functions}
        self._functions["builtins.getattr"] = _get_attribute
        self._functions["collections.defaultdict"] = lambda _=None, *items: self._dict(*items)

    def load(self) -> Any:
        """Return the value of the pickle; see :func:`read_checkpoint` for errors."""
        start = self._file.tell()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "invalid escape", DeprecationWarning)
                # first, because operations allocate memory before they read its content
                for count, _ in enumerate(pickletools.genops(self._file)):
                    if count == MAX_OPERATIONS:
                        raise CheckpointError(f"holds more than {MAX_OPERATIONS} values{_NEVER}")
                self._file.seek(start)
                value = super().load()
        except CheckpointError:
            raise
        except Exception as error:  # malformed operations may raise anything
            raise damaged(f"{type(error).__name__}: {printable(error)}") from None
        _measure(value, 0, {})
        return value

    def find_class(self, module: str, name: str) -> Any:
        """Return a reference to a name instead of importing it."""
        reference = Reference(module, name)
        return _DTYPES.get(name, reference) if module == "torch" else reference

    def get_extension(self, code: int) -> None:
        """Reject names of Python's extension registry."""
        raise hostile(f"run extension {code} of Python's registry")

    def _call(self, function: Any, arguments: Any, is_class: bool = False) -> Any:
        """Return the value of a call; ``is_class`` if the operation can only call classes."""
        if not isinstance(function, Inert) or not isinstance(arguments, tuple):
            raise damaged(f"it calls {kind_of(function)}")
        if not isinstance(function, Reference):
            raise hostile(f"run a function that it gets from {printable(function.origin)}")
        if function.origin in self._functions:
            return self._functions[function.origin](*arguments)
        if not (is_class or function.is_harmless):
            raise hostile(f"run {printable(function.origin)}")
        return Inert(function.origin)

    def take(self, count: int) -> None:
        """Count ``count`` copied bytes, so that a small file cannot claim copies of copies."""
        self._copies_left -= count
        if self._copies_left < 0:
            raise CheckpointError("asks for more memory than its size explains")

    def _dict(self, items: Any = ()) -> Any:
        if not isinstance(items, dict | list | tuple):
            return Inert("builtins.dict")
        self.take(len(items))
        pairs = items.items() if isinstance(items, dict) else items
        return {as_key(key): value for key, value in pairs}

    # Operations

    def _instantiate(self, klass: Any, args: list[Any]) -> None:
        self.append(self._call(klass, tuple(args)))

    def _reduce(self, is_class: bool = False) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], arguments, is_class)

    def _new_object_with_names(self) -> None:
        self.stack.pop()
        self._reduce(is_class=True)

    def _build(self) -> None:
        self.stack.pop()
        if isinstance(self.stack[-1], Reference):
            raise hostile(f"change {printable(self.stack[-1].origin)}")

    def _set_items(self, items: list[Any] | None = None) -> None:
        items = self.pop_mark() if items is None else items
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(zip(map(as_key, items[::2]), items[1::2], strict=True))
        elif not isinstance(target, Inert):
            raise damaged(f"it sets items of {kind_of(target)}")

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _dict_of_items(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def _set(self) -> None:  # members would have to be hashed
        self.append(Inert("builtins.set"))

    def _frozenset(self) -> None:
        self.pop_mark()
        self._set()

    dispatch: ClassVar[dict[int, Callable]] = {
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: partial(_reduce, is_class=True),
        pickle.NEWOBJ_EX[0]: _new_object_with_names,
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _dict_of_items,
        pickle.EMPTY_SET[0]: _set,
        pickle.ADDITEMS[0]: pickle._Unpickler.load_appends,
        pickle.FROZENSET[0]: _frozenset,
    }
    del dispatch[pickle.READONLY_BUFFER[0]]  # refers to buffers outside of the file


def _get_attribute(owner: Any, name: Any, *_: Any) -> Any:
    """Return a reference for ``getattr``, which pickles use for inner classes and methods."""
    if isinstance(owner, Reference):  # Reference checks names with dots
        return Reference(owner.module, f"{owner.name}.{name}")
    if isinstance(owner, Inert):
        return Inert(f"{owner.origin}.{name}")
    raise hostile(f"run getattr on {kind_of(owner)}")


def is_count(value: Any) -> bool:
    """Return whether a value is a non-negative integer of 64 bits."""
    return type(value) is int and 0 <= value < 1 << 63


def is_shape(value: Any) -> bool:
    """Return whether a value is the shape of a tensor that torch can handle, empty or not."""
    if not isinstance(value, tuple | list) or len(value) > MAX_DIMS:
        return False
    return all(map(is_count, value)) and math.prod(n or 1 for n in value) <= MAX_EXTENT


def as_key(key: Any) -> Any:
    """Return ``key`` if it is plain; hashing deep or colliding keys could hang or crash."""
    if key is None or isinstance(key, str | bytes | float):
        return key
    if isinstance(key, int) and -_MAX_KEY < key < _MAX_KEY:
        return key
    return Inert(f"builtins.{type(key).__name__}")


def _measure(value: Any, depth: int, done: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Return the depth of a value and its number of values.

    Raises:
        CheckpointError: If the value is nested too deeply or contains itself.
    """
    if type(value) not in (dict, list, tuple):
        return 0, 1
    if id(value) not in done:
        if depth == MAX_DEPTH:
            raise CheckpointError(f"nests values more than {MAX_DEPTH} deep{_NEVER}")
        done[id(value)] = None
        parts = value.values() if isinstance(value, dict) else value
        measures = [_measure(part, depth + 1, done) for part in parts]
        height = 1 + max((height for height, _ in measures), default=0)
        done[id(value)] = height, 1 + sum(count for _, count in measures)
    measure = done[id(value)]
    if measure is None:
        raise CheckpointError(f"nests values within themselves{_NEVER}")
    if depth + measure[0] > MAX_DEPTH or measure[1] > MAX_OPERATIONS:
        raise CheckpointError(f"repeats the same values too often or too deep{_NEVER}")
    return measure
