"""Own data of any task, read as the library of a recipe needs them."""

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
        library: ``'mmpretrain'`` (folders of photos), ``'mmdet'`` (COCO files) or ``'mmseg'``
            (label maps).
        root: Folder of the data.
        out: Folder for lists and files of parts, made if needed.
        layout: Where they do not lie as usual.
        watch: Shows progress.

    Raises:
        ValueError: If ``library`` is none of the three.
        DataError: If the data cannot be trained on; the message names the file.
    """
    if library not in _READERS:
        raise ValueError(f"library must be one of {', '.join(_READERS)}, got {library!r}")
    if layout is not None and layout.reduce_zero_label and library != "mmseg":
        raise DataError("--reduce-zero-label is about label maps, which mmseg's recipes train on")
    return _READERS[library](root, out, layout, watch)
