"""Readers of the package's own kinds of case, a file per family."""

from . import analysis, efficient_vmamba, local_mamba, mambavision, msvmamba, ops, vim, vmamba

__all__ = [
    "analysis",
    "efficient_vmamba",
    "local_mamba",
    "mambavision",
    "msvmamba",
    "ops",
    "vim",
    "vmamba",
]
