"""Results of analyses as files: pictures, and JSON of the numbers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mmvssm.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".pdf", ".svg")


def save_picture(figure: Figure, path: Path) -> None:
    """Write a picture; a PNG with a palette, which is a third as large."""
    if path.suffix != ".png":
        figure.savefig(path)
        return
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    Image.open(buffer).convert("RGB").quantize(128).save(path, optimize=True)


def save_results(paths: Iterable[Path], draw: Callable[[], Figure], data: dict[str, Any]) -> None:
    """Write a picture or, to ``.json``, the numbers.

    Args:
        paths: Files to write, see :data:`PICTURES`.
        draw: Draws the picture.
        data: The numbers; tensors become lists of six digits.

    Raises:
        OSError: If a file cannot be written; what was there stays.
    """
    figure = None
    for path in paths:
        if path.suffix == ".json":
            text = json.dumps(data, default=_to_list) + "\n"
            atomic_write(path, partial(_write_text, text))
            continue
        figure = draw() if figure is None else figure
        atomic_write(path, partial(save_picture, figure))


def _write_text(text: str, path: Path) -> None:
    path.write_text(text)


def _to_list(value: Any) -> Any:
    if not isinstance(value, Tensor):
        raise TypeError(f"{type(value).__name__} has no form in JSON")
    if value.dim() == 0:
        return float(f"{value.item():.6g}")
    return [_to_list(part) for part in value]
