"""Names in pickles, none of which is imported or called.

The lists tell a file that stores objects, which become inert, from one made to run something.
"""

from __future__ import annotations

import re
import sys

from mmvssm.messages import printable


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Names of Python 2.
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
#: Modules of the standard library whose classes honest files store; all others run things.
_STANDARD = _words(
    """
    _codecs _collections_abc _decimal _random abc argparse array builtins collections contextlib
    copy copyreg csv dataclasses datetime decimal enum fractions functools inspect ipaddress
    itertools json logging math numbers pathlib queue random re statistics string struct time
    typing uuid warnings weakref zoneinfo
    """
)
#: Functions, and classes with small first letters, by which honest objects are stored.
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
    """A file is no checkpoint, is damaged, or does not hold what is asked for."""


class HostileFileError(CheckpointError):
    """A file asks to run code when it is loaded; nothing of it was run."""


def damaged(reason: object) -> CheckpointError:
    """Make the error for damage."""
    return CheckpointError(f"is cut off or damaged ({reason}): download or copy it again")


def hostile(action: str) -> HostileFileError:
    """Make the error for a file that asks for ``action``."""
    return HostileFileError(
        f"asks to {action} when it is loaded; nothing was run; do not use this file"
    )


class Inert:
    """Takes the place of an object of a file, ``origin``, that is no tensor and no plain value."""

    __slots__ = ("origin",)

    def __init__(self, origin: str) -> None:
        self.origin = origin

    def __repr__(self) -> str:
        return f"<{printable(self.origin)}, left out>"

    def extend(self, items: object) -> None:
        """Leave out items, as those of lists and sets of other classes."""

    append = extend


class Reference(Inert):
    """The name of a class or function in a file; dots in ``name`` are attributes.

    Raises:
        HostileFileError: If a file of weights has no use for it but to run code.
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
            # what modules import can be reached as their attributes: `argparse`, `_os.system`
            or not all(map(_is_class_name, owners))
        ):
            raise hostile(f"run {printable(self.origin)}")

    @property
    def is_harmless(self) -> bool:
        """Whether honest files store objects as calls of it."""
        return (
            _is_class_name(self.name.rpartition(".")[2])
            or self.origin in _HARMLESS
            or _HARMLESS_PATTERN.fullmatch(self.origin) is not None
        )


def _is_class_name(name: str) -> bool:
    return name.lstrip("_")[:1].isupper()
