"""The operations of pickles, decoded by the standard library within the bounds of a file."""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from mmap import mmap
from typing import Any

from ..messages import printable
from .errors import CheckpointError


class Window:
    """A part of a mapped file, as :mod:`pickletools` reads it.

    Args:
        data: The mapped file.
        start: First byte of the part.
        stop: The byte behind it.
    """

    def __init__(self, data: mmap | bytes, start: int, stop: int) -> None:
        self._data, self._position, self._stop = data, start, stop

    @property
    def size(self) -> int:
        """Number of bytes that are left."""
        return self._stop - self._position

    def tell(self) -> int:
        """Position of the next byte in the file."""
        return self._position

    def read(self, count: int) -> bytes:
        """``count`` bytes; never sets memory aside for more than there are."""
        if count > self.size:
            raise CheckpointError("is cut off or damaged: download or copy it again")
        return self._take(self._position + count)

    def readline(self) -> bytes:
        """The bytes up to the next end of a line, with it."""
        end = self._data.find(b"\n", self._position, self._stop)
        return self._take(end + 1 if end >= 0 else self._stop)

    def _take(self, end: int) -> bytes:
        taken = self._data[self._position : end]
        self._position = end
        return taken


def operations(window: Window) -> Iterator[tuple[str, Any]]:
    """Name and argument of each operation of the pickle at the start of ``window``.

    Raises:
        CheckpointError: If something there is no operation.
    """
    try:
        for operation, argument, _ in pickletools.genops(window):
            yield operation.name, argument
    except CheckpointError:
        raise
    except (ValueError, OverflowError) as error:
        raise CheckpointError(
            f"is cut off or damaged ({printable(error)}): download or copy it again"
        ) from None
