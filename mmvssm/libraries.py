"""What is said where a config needs an OpenMMLab library that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

#: Distributions by the names that MMEngine and Python give for what they miss.
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
    """Say in one sentence which OpenMMLab library is missing inside; other errors pass.

    Args:
        what: What needs it, in words.

    Raises:
        MissingLibraryError: In place of the error that Python or MMEngine raise.
    """
    try:
        yield
    except MissingLibraryError:
        raise
    except ModuleNotFoundError as error:
        if error.name == "mmcv._ext":
            raise MissingLibraryError(
                f"{what} needs mmcv with its compiled ops, and the mmcv that is installed has none"
                " (as mmcv-lite): pip uninstall mmcv-lite, then"
                " pip install --no-build-isolation 'mmcv>=2.0.1,<2.2'",
                name=error.name,
            ) from error
        said = _SAID_BY_MMENGINE.match(str(error))
        missing = _DISTRIBUTIONS.get(said[1] if said else error.name or "")
        if missing is None:
            raise
        raise MissingLibraryError(
            f"{what} needs {missing}, which is not installed: requirements/mminstall.txt and"
            " docs/start/install.md say which version",
            name=missing,
        ) from error
