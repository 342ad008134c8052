"""Readers of the reference's descriptions, a file per family."""

from .common import Reading
from .vmamba import read as _vmamba

#: From the family of a case to the reader of its description.
READERS = {"vmamba": _vmamba}

__all__ = ["READERS", "Reading"]
