"""The compiled extension, loaded once.

A missing extension is normal (``MMVSSM_WITH_OPS=0``, or no compiler). An extension that was built
but does not load is an error, which the import raises.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

EXTENSION: ModuleType | None = None
# Devices for which kernels were compiled: ('cpu',), ('cpu', 'cuda') or ().
DEVICES: tuple[str, ...] = ()

if importlib.util.find_spec("mmvssm._vssm_ext") is not None:
    EXTENSION = importlib.import_module("mmvssm._vssm_ext")
    DEVICES = tuple(EXTENSION.devices())
