"""Backbones, one file per family. Every module of this package is imported automatically."""

from importlib import import_module
from pkgutil import iter_modules

from mmvssm.registry import MODELS

for _found in iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")

#: The backbones that the modules of this package have registered.
__all__ = []
for _name, _cls in MODELS.module_dict.items():
    if _cls.__module__.startswith(f"{__name__}."):
        globals()[_name] = _cls
        __all__.append(_name)
