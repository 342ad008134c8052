"""Error messages for OpenMMLab libraries that a config needs but are not installed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

#: Distributions by the names in the errors of MMEngine and Python.
_DISTRIBUTIONS = {
    "mmcv": "mmcv",
    "mmdet": "mmdet",
    "mmpretrain": "mmpretrain",
    "mmseg": "mmsegmentation",
    "mmsegmentation": "mmsegmentation",
}
_SAID_BY_MMENGINE = re.compile(r"(\w+) is not installed, please install")


class MissingLibraryError(ModuleNotFoundError):
    """A library, or a compiled part of it, is not installed; the message says which."""


@contextmanager
def missing_library_named(what: str) -> Iterator[None]:
    """Convert errors about missing OpenMMLab libraries to one that names the library.

    Other errors are not changed.

    Args:
        what: What needs the library, for the message.

    Raises:
        MissingLibraryError: Instead of the error of Python or MMEngine.
    """
    try:
        yield
    except MissingLibraryError:
        raise
    except ModuleNotFoundError as error:
        if error.name == "mmcv._ext":
            raise MissingLibraryError(
                f"{what} needs mmcv with its compiled ops, but the installed mmcv has none"
                " (like mmcv-lite): pip uninstall mmcv-lite, then"
                " pip install --no-build-isolation 'mmcv>=2.0.1,<2.2'",
                name=error.name,
            ) from error
        said = _SAID_BY_MMENGINE.match(str(error))
        missing = _DISTRIBUTIONS.get(said[1] if said else error.name or "")
        if missing is None:
            raise
        raise MissingLibraryError(
            f"{what} needs {missing}, which is not installed; for the version, see"
            " requirements/mminstall.txt and docs/start/install.md",
            name=missing,
        ) from error
