"""Readers of the reference's descriptions, a file per family."""

from .common import Reading
from .efficient_vmamba import read as _efficient_vmamba
from .msvmamba import read as _msvmamba
from .vmamba import read as _vmamba

#: From the family of a case to the reader of its description.
READERS = {"efficient_vmamba": _efficient_vmamba, "msvmamba": _msvmamba, "vmamba": _vmamba}

__all__ = ["READERS", "Reading"]
