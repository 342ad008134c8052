"""Results as files: numbers as JSON, figures as pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmvssm.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg", ".pdf")


def check_outputs(paths: Sequence[Path]) -> None:
    """Check that results can be written to ``paths``, before they are computed.

    Args:
        paths: Files, whose suffixes say what is written: ``.json`` or one of :data:`PICTURES`.

    Raises:
        ValueError: If a suffix is another, a folder is missing, or matplotlib for a picture.
    """
    suffixes = (".json", *PICTURES)
    for path in paths:
        if path.suffix not in suffixes:
            raise ValueError(f"--out must end in {' or '.join(suffixes)}, got {str(path)!r}")
        if path.is_dir():
            raise ValueError(f"{str(path)!r} is a folder")
        if not path.parent.is_dir():
            raise ValueError(f"there is no folder {str(path.parent)!r}")
        if path.suffix in PICTURES and find_spec("matplotlib") is None:
            raise ValueError("pictures need matplotlib: pip install matplotlib")


def write_outputs(
    paths: Sequence[Path], data: Any, draw: Callable[[], Figure] | None = None
) -> None:
    """Write results: ``data`` to JSON files, what ``draw`` returns to pictures.

    Raises:
        OSError: If a file cannot be written; what was there stays.
    """
    for path in paths:
        if path.suffix == ".json":
            text = json.dumps(data, indent=1) + "\n"
            atomic_write(path, lambda part, text=text: part.write_text(text))  # type: ignore[misc]
        elif draw is not None:
            save_figure(draw(), path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture; a PNG with a palette, which is a third as large."""
    if path.suffix == ".png":
        from PIL import Image

        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        image = Image.open(buffer).convert("RGB").quantize(128)
        atomic_write(path, lambda part: image.save(part, optimize=True))
    else:
        atomic_write(path, figure.savefig)
