"""Reading of custom datasets of any task."""

from __future__ import annotations

from pathlib import Path

from .classification import read_classification
from .data import DataError, Layout, OwnData, Watch, unwatched
from .detection import read_detection
from .segmentation import read_segmentation

_READERS = {
    "mmpretrain": read_classification,
    "mmdet": read_detection,
    "mmseg": read_segmentation,
}


def read_data(
    library: str,
    root: str | Path,
    out: str | Path,
    layout: Layout | None = None,
    watch: Watch = unwatched,
) -> OwnData:
    """Find and check the data below ``root``.

    Args:
        library: ``'mmpretrain'`` (folders of images), ``'mmdet'`` (COCO files) or ``'mmseg'``
            (label maps).
        root: Folder of the data.
        out: Folder for lists and other files to write, created if needed.
        layout: Deviations from the usual layout.
        watch: Shows progress.

    Raises:
        ValueError: If ``library`` is not one of the three.
        DataError: If the data cannot be used for training; the message names the file.
    """
    if library not in _READERS:
        raise ValueError(f"library must be one of {', '.join(_READERS)}, got {library!r}")
    if layout is not None and layout.reduce_zero_label and library != "mmseg":
        raise DataError(f"--reduce-zero-label needs a recipe of mmseg, got one of {library}")
    return _READERS[library](root, out, layout, watch)
