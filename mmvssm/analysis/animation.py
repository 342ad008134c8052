"""Animations of the routes of a layer over an image."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mmvssm.models.layers import from_windows

from .scan_records import LayerScans, RouteScan

FRAMES = 48
_FRAME, _LAST = 80, 1500  # milliseconds
_PANEL = 208  # pixels of the longer side
_PANELS_PER_ROW = 4
_GAP, _LINE = 8, 15  # pixels
_DIM = 0.35  # brightness of unvisited pixels
_HEAD = (255, 255, 255)
_TOKEN = (220, 0, 0)


def visit_times(scans: LayerScans, route: RouteScan, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return when a route last visited each place, as fractions of its steps.

    Args:
        scans: The layer.
        route: One of the routes of its first window; those of all windows run in parallel.
        share: Fraction of the steps that are done, in (0, 1]; at least one step is done.

    Returns:
        float64 ``(H, W)`` for the pixels and ``(T,)`` for the class tokens; 0 for those not
        visited.
    """
    height, width = route.size
    total = len(route.read)
    steps = route.read[: math.ceil(share * total)].cpu()
    shares = torch.arange(1, len(steps) + 1, dtype=torch.float64) / total
    times = torch.zeros(route.num_places, dtype=torch.float64)
    visits = steps >= 0
    times.scatter_reduce_(0, steps[visits], shares[visits], "amax")
    pixels = times[: height * width].view(height, width)
    if scans.window_size is not None:
        windows = pixels[None, :, :, None].expand(len(scans.routes), -1, -1, -1)
        pixels = from_windows(windows, scans.size)[0, :, :, 0]
    return pixels, times[height * width :]


def animate_routes(scans: LayerScans, image: np.ndarray, frames: int = FRAMES) -> list[Image.Image]:
    """Draw the routes of a layer over an image, in frames that show them progressing in parallel.

    Unvisited pixels are dark. Visited pixels are coloured by the time of their last visit, from
    violet to yellow; those of the latest steps are white. A disc before a pixel is a class token,
    filled once it is visited. The function needs matplotlib.

    Args:
        scans: Result of :func:`record_scans`.
        image: The input of the backbone as uint8 ``(H, W, 3)`` in RGB.
        frames: Number of frames.

    Returns:
        The frames, all of the same size, with a panel for each route.
    """
    routes = scans.routes[0]
    scale = _PANEL / max(image.shape[:2])
    size = (max(round(image.shape[0] * scale), 1), max(round(image.shape[1] * scale), 1))
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    base = np.asarray(resized).astype(np.float32)
    panels = [_Panel(scans, route, base) for route in routes]
    # as many characters per line as fit into the panel
    titles = [textwrap.wrap(route.name, max(size[1] // 7, 10)) for route in routes]
    head = max(map(len, titles)) * _LINE + 4
    columns = min(len(panels), _PANELS_PER_ROW)
    rows = -(-len(panels) // columns)
    cell = (size[1] + _GAP, head + size[0] + _GAP)
    font = ImageFont.load_default(12)
    page = Image.new("RGB", (columns * cell[0] + _GAP, rows * cell[1] + _GAP), "white")
    corners = [
        (_GAP + i % columns * cell[0], _GAP + i // columns * cell[1]) for i in range(len(panels))
    ]
    for (left, top), title in zip(corners, titles):
        ImageDraw.Draw(page).multiline_text((left, top), "\n".join(title), "black", font)
    pictures = []
    for number in range(1, frames + 1):
        picture = page.copy()
        for (left, top), panel in zip(corners, panels):
            drawn = panel.draw(number / frames, (number - 1) / frames)
            picture.paste(drawn, (left, top + head))
        pictures.append(picture)
    return pictures


def encode_animation(frames: Sequence[Image.Image]) -> bytes:
    """Encode frames as an animated WebP, whose last frame is held for a while."""
    file = io.BytesIO()
    durations = [_FRAME] * (len(frames) - 1) + [_LAST]
    frames[0].save(
        file, "WEBP", save_all=True, append_images=frames[1:], duration=durations, loop=0,
        quality=75, method=0,
    )  # fmt: skip
    return file.getvalue()


class _Panel:
    """The panel of one route.

    Args:
        scans: The layer.
        route: The route.
        image: float32 ``(h, w, 3)`` with values from 0 to 255.
    """

    def __init__(self, scans: LayerScans, route: RouteScan, image: np.ndarray) -> None:
        self.scans, self.route, self.image = scans, route, image

    def draw(self, done: float, before: float) -> Image.Image:
        """Draw the pixels visited at fraction ``done``, with those since ``before`` as latest."""
        from matplotlib import colormaps

        times, tokens = (part.numpy() for part in visit_times(self.scans, self.route, done))
        size, grid = self.image.shape[:2], times.shape
        rows, columns = (np.arange(n) * m // n for n, m in zip(size, grid))
        over = rows[:, None], columns
        visited, colors = times > 0, 255 * colormaps["viridis"](times)[..., :3]
        pixels = np.where(
            visited[over][..., None], 0.45 * self.image + 0.55 * colors[over], _DIM * self.image
        )
        if done < 1:
            pixels[(visited & (times > min(before, times.max() - 1e-9)))[over]] = _HEAD
        picture = Image.fromarray(pixels.astype(np.uint8))
        pen = ImageDraw.Draw(picture)
        for place, time in zip(self.route.cls_places, tokens):
            row, column = divmod(place, grid[1])
            if place == times.size:  # after the last pixel
                row, column = grid[0] - 1, grid[1]
            x, y = column * size[1] / grid[1], (row + 0.5) * size[0] / grid[0]
            x = min(max(x, 6), picture.width - 7)
            pen.ellipse((x - 5, y - 5, x + 5, y + 5), _TOKEN if time else None, "white", 2)
        return picture
