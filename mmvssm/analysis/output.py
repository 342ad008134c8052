"""Output files: numbers as JSON, and figures."""

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
    """Check, before results are computed, that they can be written to ``paths``.

    Args:
        paths: Files; the suffix selects the format, ``.json`` or one of :data:`PICTURES`.

    Raises:
        ValueError: If a suffix is unknown, a folder is missing, or a figure needs matplotlib, which
            is not installed.
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
            raise ValueError("figures need matplotlib: pip install matplotlib")


def write_outputs(
    paths: Sequence[Path], data: Any, draw: Callable[[], Figure] | None = None
) -> None:
    """Write ``data`` to JSON files, and the figure that ``draw`` returns to the others.

    Raises:
        OSError: If a file cannot be written; an existing file is then kept.
    """
    for path in paths:
        if path.suffix == ".json":
            text = json.dumps(data, indent=1) + "\n"
            atomic_write(path, lambda part, text=text: part.write_text(text))  # type: ignore[misc]
        elif draw is not None:
            save_figure(draw(), path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; PNG files get a palette, which reduces them to a third."""
    if path.suffix == ".png":
        from PIL import Image

        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        image = Image.open(buffer).convert("RGB").quantize(128)
        atomic_write(path, lambda part: image.save(part, optimize=True))
    else:
        atomic_write(path, figure.savefig)
