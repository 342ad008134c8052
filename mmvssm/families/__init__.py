"""Declarations of the families, one module each.

Every module of this package is imported, and calls :func:`register_family` if it declares a family.
The others hold rules that several families share, or code that applies the declarations.
"""

# ruff: noqa: F401  re-exported

from importlib import import_module
from pkgutil import iter_modules

from .family import FAMILIES, Family, Released, ScanCost, arch_names, find_declared, register_family

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
