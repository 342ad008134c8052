"""One file a family: every module of this folder is imported, so that a new one needs no list."""

from importlib import import_module
from pkgutil import iter_modules

from mmvssm.registry import MODELS

for _found in iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")

#: The backbones: what the modules of this folder have registered.
__all__ = []
for _name, _cls in MODELS.module_dict.items():
    if _cls.__module__.startswith(f"{__name__}."):
        globals()[_name] = _cls
        __all__.append(_name)
