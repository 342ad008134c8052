"""Declarations of the families, one module each; a new module declares a family without lists.

Each module calls :func:`register_family` when it is imported. Modules without a declaration hold
rules that several families share, and what reads keys by the declarations.
"""

# ruff: noqa: F401  the names are for others

from importlib import import_module
from pkgutil import iter_modules

from .family import FAMILIES, Family, Released, ScanCost, arch_names, find_declared, register_family

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
