"""Names of classes and functions in pickles, none of which is ever imported or called.

The lists only tell a file that stores objects, which become inert, from one that was made to run
something.
"""

from __future__ import annotations

import sys

from ..messages import printable
from .errors import hostile

_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2, protocols below 3

#: Modules of the standard library whose classes honest files store; all others run things.
_STANDARD = frozenset(
    """
    _codecs _collections_abc _decimal _random abc argparse array builtins collections contextlib
    copy copyreg csv dataclasses datetime decimal enum fractions functools inspect ipaddress
    itertools json logging math numbers pathlib queue random re statistics string struct time types
    typing uuid warnings weakref zoneinfo
    """.split()
)
#: Further modules and names with all that is in them.
_RUNNERS = frozenset(
    """
    IPython cPickle cffi cloudpickle commands dill distutils execnet fabric imp joblib
    logging.config numpy.ctypeslib numpy.distutils numpy.f2py numpy.load numpy.testing paramiko pip
    pkg_resources popen2 requests setuptools torch._dynamo torch._inductor torch.classes
    torch.distributed.rpc torch.fx torch.hub torch.jit torch.load torch.multiprocessing torch.ops
    torch.package torch.serialization torch.storage._load_from_bytes torch.utils.bottleneck
    torch.utils.collect_env torch.utils.cpp_extension torch.utils.model_zoo types.CodeType
    types.FunctionType urllib2 urllib3
    """.split()
)
_BUILTIN_RUNNERS = frozenset(
    """
    __build_class__ __import__ __loader__ apply breakpoint compile copyright credits delattr eval
    exec execfile exit file filter globals help input license locals map open quit raw_input reload
    setattr vars
    """.split()
)
#: Functions, and classes with small first letters, by which honest objects are stored.
_HARMLESS = frozenset(
    """
    _io.BytesIO _io.StringIO _operator.getitem _operator.or_ builtins.bool builtins.bytearray
    builtins.bytes builtins.complex builtins.dict builtins.enumerate builtins.float
    builtins.frozenset builtins.getattr builtins.int builtins.iter builtins.list builtins.object
    builtins.range builtins.reversed builtins.set builtins.slice builtins.str builtins.tuple
    builtins.type builtins.xrange builtins.zip collections.deque copyreg.__newobj__
    copyreg.__newobj_ex__ copyreg._reconstructor datetime.date datetime.datetime datetime.time
    datetime.timedelta datetime.timezone functools.partial itertools.chain itertools.count
    itertools.cycle itertools.islice itertools.product itertools.repeat logging.getLogger
    numpy._core.multiarray._reconstruct numpy._core.multiarray.scalar
    numpy._core.numeric._frombuffer numpy.core.multiarray._reconstruct numpy.core.multiarray.scalar
    numpy.core.numeric._frombuffer numpy.dtype numpy.ma.core._mareconstruct numpy.ndarray
    numpy.random._pickle.__bit_generator_ctor numpy.random._pickle.__generator_ctor
    numpy.random._pickle.__randomstate_ctor operator.getitem operator.or_ re._compile
    torch.serialization._get_layout types.GenericAlias types.MappingProxyType types.SimpleNamespace
    types.UnionType zoneinfo.ZoneInfo._unpickle
    """.split()
)


class Inert:
    """Takes the place of every object of a file that is no tensor and no plain value.

    Args:
        origin: What the file has there, ``module.Class``.

    Attributes:
        is_network: Whether it was a pickled ``torch.nn.Module``.
    """

    __slots__ = ("is_network", "origin")

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.is_network = False

    def __repr__(self) -> str:
        return f"<{printable(self.origin)}, left out>"

    def extend(self, items: object) -> None:
        """Leave out items; those of lists of other classes."""

    append = update = extend


class Reference(Inert):
    """The name of a class or function in a file, never looked up.

    Args:
        module: Its module.
        name: Its name there; dots are attributes.

    Raises:
        HostileFileError: If a file of weights has no use for it but to run code.
    """

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = _RENAMED.get(module, module)
        self.name = name
        super().__init__(f"{self.module}.{name}")
        if self._is_runner() and self.origin not in _HARMLESS:
            raise hostile(f"run {printable(self.origin)}")

    @property
    def is_harmless(self) -> bool:
        """Whether honest files store objects as calls of it."""
        return (
            _is_class_name(self.name.rpartition(".")[2])
            or self.origin in _HARMLESS
            or (self.module == "torch._utils" and self.name.startswith("_rebuild_"))
            or self.name.startswith("__pyx_unpickle_")  # Cython's classes
        )

    def _is_runner(self) -> bool:
        *owners, _ = names = self.name.split(".")
        parts = self.origin.split(".", 4)
        return (
            (parts[0] in sys.stdlib_module_names and parts[0] not in _STANDARD)
            or any(".".join(parts[: i + 1]) in _RUNNERS for i in range(min(len(parts), 4)))
            or (self.module == "builtins" and names[0] in _BUILTIN_RUNNERS)
            # what modules import can be reached as their attributes: `argparse`, `_os.system`
            or not all(map(_is_class_name, owners))
        )


def _is_class_name(name: str) -> bool:
    return name.lstrip("_")[:1].isupper()
