"""Readers of the reference's descriptions, a file per family."""

from .common import Reading
from .efficient_vmamba import read as _efficient_vmamba
from .vmamba import read as _vmamba

#: From the family of a case to the reader of its description.
READERS = {"efficient_vmamba": _efficient_vmamba, "vmamba": _vmamba}

__all__ = ["READERS", "Reading"]
