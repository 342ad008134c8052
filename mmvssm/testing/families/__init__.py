"""Readers of the reference's descriptions, a file per family."""

from .common import Reading
from .efficient_vmamba import read as _efficient_vmamba
from .local_mamba import read as _local_mamba
from .msvmamba import read as _msvmamba
from .vim import read as _vim
from .vmamba import read as _vmamba

#: From the family of a case to the reader of its description.
READERS = {
    "efficient_vmamba": _efficient_vmamba,
    "local_mamba": _local_mamba,
    "msvmamba": _msvmamba,
    "vim": _vim,
    "vmamba": _vmamba,
}

__all__ = ["READERS", "Reading"]
