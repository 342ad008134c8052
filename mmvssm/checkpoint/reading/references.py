"""Names of classes and functions in pickles: which are harmless, which are there to run things.

Nothing here is ever imported or called. The rules only tell a file that stores objects, which
become inert, from a file that was made to run something.
"""

from __future__ import annotations

from ..messages import printable
from .errors import HostileFileError

_COMPATIBLE = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2, protocols below 3


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Modules, with all that is in them, which a file of weights has no use for.
_RUNNERS = _words(
    """
    IPython _aix_support _ctypes _io _osx_support _pickle _posixsubprocess _sitebuiltins _thread
    _winapi asyncio atexit bdb cPickle cProfile cffi cloudpickle code codeop commands compileall
    concurrent ctypes dbm dill distutils doctest ensurepip execnet fabric fcntl fileinput ftplib gc
    glob http idlelib imaplib imp importlib io joblib lib2to3 linecache logging.config marshal mmap
    msvcrt multiprocessing nt ntpath numpy.ctypeslib numpy.distutils numpy.f2py numpy.load
    numpy.testing operator _operator os paramiko pdb pickle pickletools pip pkg_resources pkgutil
    popen2 poplib posix posixpath profile pty py_compile pydoc requests resource rlcompleter runpy
    setuptools shelve shutil signal site smtplib socket socketserver sqlite3 ssl subprocess sys
    sysconfig tarfile telnetlib tempfile thread threading timeit torch._dynamo torch._inductor
    torch.classes torch.distributed.rpc torch.fx torch.hub torch.jit torch.load
    torch.multiprocessing torch.ops torch.package torch.serialization
    torch.storage._load_from_bytes torch.utils.bottleneck torch.utils.collect_env
    torch.utils.cpp_extension torch.utils.model_zoo trace types unittest urllib urllib2 urllib3
    venv webbrowser winreg xmlrpc zipapp zipfile zipimport
    """
)
_BUILTIN_RUNNERS = _words(
    """
    __build_class__ __import__ __loader__ apply breakpoint compile copyright credits delattr eval
    exec execfile exit file filter globals help input license locals map open quit raw_input reload
    setattr vars
    """
)

# Functions, and classes with small first letters, that honest objects are stored by.
_HARMLESS = _words(
    """
    _io.BytesIO _io.StringIO builtins.bool builtins.bytearray builtins.bytes builtins.complex
    builtins.dict builtins.enumerate builtins.float builtins.frozenset builtins.getattr builtins.int
    builtins.iter builtins.list builtins.object builtins.range builtins.reversed builtins.set
    builtins.slice builtins.str builtins.tuple builtins.type builtins.xrange builtins.zip
    collections.deque copyreg.__newobj__ copyreg.__newobj_ex__ copyreg._reconstructor
    datetime.date datetime.datetime datetime.time datetime.timedelta datetime.timezone
    functools.partial itertools.chain itertools.count itertools.cycle itertools.islice
    itertools.product itertools.repeat logging.getLogger numpy.dtype numpy.ndarray
    numpy.ma.core._mareconstruct re._compile
    _operator.getitem _operator.or_ operator.getitem operator.or_ torch.serialization._get_layout
    types.GenericAlias types.MappingProxyType types.SimpleNamespace types.UnionType
    zoneinfo.ZoneInfo._unpickle
    """
)
_HARMLESS_IN = {
    "numpy.core.multiarray": _words("_reconstruct scalar"),
    "numpy._core.multiarray": _words("_reconstruct scalar"),
    "numpy.core.numeric": _words("_frombuffer"),
    "numpy._core.numeric": _words("_frombuffer"),
    "numpy.random._pickle": _words("__bit_generator_ctor __generator_ctor __randomstate_ctor"),
}


class Inert:
    """Stands for every object of a file that is no tensor and no plain value; carries nothing.

    Args:
        origin: What it stands for, ``module.Class``.

    Attributes:
        is_network: Whether it was a pickled ``torch.nn.Module``.
    """

    __slots__ = ("is_network", "origin")

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.is_network = False

    def __repr__(self) -> str:
        return f"<{printable(self.origin)}, left out>"


class Reference(Inert):
    """The name of a class or function in a file, never looked up.

    Args:
        module: Its module.
        name: Its name there; dots stand for attributes.

    Raises:
        HostileFileError: If a file of weights has no use for it but to run code.
    """

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = _COMPATIBLE.get(module, module)
        self.name = name
        super().__init__(f"{self.module}.{self.name}")
        if self._is_runner() and self.origin not in _HARMLESS:
            raise hostile(f"run {printable(self.origin)}")

    @property
    def is_class(self) -> bool:
        """Whether it is named as classes are."""
        return _is_class_name(self.name.rpartition(".")[2])

    @property
    def is_harmless(self) -> bool:
        """Whether an object that is stored as a call of it is nothing to worry about."""
        return (
            self.is_class
            or self.origin in _HARMLESS
            or self.name in _HARMLESS_IN.get(self.module, ())
            or (self.module == "torch._utils" and self.name.startswith("_rebuild_"))
            or self.name.startswith("__pyx_unpickle_")  # Cython's classes
        )

    def _is_runner(self) -> bool:
        *owners, _ = names = self.name.split(".")
        parts = [*self.module.split("."), *names]
        return (
            any(".".join(parts[: i + 1]) in _RUNNERS for i in range(min(len(parts), 4)))
            or (self.module == "builtins" and names[0] in _BUILTIN_RUNNERS)
            # what modules import can be reached as their attributes: `argparse`, `_os.system`
            or not all(map(_is_class_name, owners))
        )


def hostile(action: str) -> HostileFileError:
    """The error for a file that asks to do ``action``."""
    return HostileFileError(
        f"asks to {action} when it is loaded; nothing was run; do not use this file"
    )


def _is_class_name(name: str) -> bool:
    return name.lstrip("_")[:1].isupper()
