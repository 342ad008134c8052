"""Inputs of a prediction: images and videos, named by files, folders and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .cli import fail

IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


@dataclass(frozen=True)
class Source:
    """An image or a video.

    Attributes:
        path: The file.
        stem: Name of its results: a unique relative path without suffix.
        is_video: Whether it is a video.
    """

    path: Path
    stem: str
    is_video: bool


def find_sources(names: Iterable[str]) -> list[Source]:
    """Find all images and videos; end the program if a name matches none.

    Args:
        names: Files, folders (searched recursively), or patterns such as ``'photos/**/*.jpg'``.
    """
    sources, stems, seen = [], set(), set()
    for path, stem in (pair for name in names for pair in _files(name)):
        if (real := path.resolve()) in seen:
            continue
        seen.add(real)
        unique, number = stem, 1
        while unique in stems:
            number += 1
            unique = f"{stem}-{number}"
        stems.add(unique)
        sources.append(Source(path, unique, path.suffix.lower() in VIDEOS))
    return sources


def _files(name: str) -> Iterator[tuple[Path, str]]:
    """Yield the files that match ``name``, with the names of their results."""
    path = Path(name)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES + VIDEOS)
        if not found:
            fail(f"there is no image or video in {name!r}")
        yield from ((p, p.relative_to(path).with_suffix("").as_posix()) for p in found)
    elif os.path.lexists(path):
        # any suffix, because it was named explicitly; if it is not an image, reading it fails
        yield path, path.stem
    else:
        found = [Path(p) for p in sorted(glob.glob(name, recursive=True)) if os.path.isfile(p)]
        if not found:
            fail(f"there is no image, video or folder {name!r}")
        yield from ((p, p.stem) for p in found)


def read_frames(path: Path) -> tuple[float, int, Iterator[np.ndarray]]:
    """Open a video.

    Returns:
        Frames per second, the number of frames that the file states, and the frames in BGR.

    Raises:
        OSError: If it cannot be opened.
    """
    video = cv2.VideoCapture(str(path))
    if not video.isOpened() or not video.get(cv2.CAP_PROP_FRAME_WIDTH):
        raise OSError("it cannot be opened as a video")
    count = max(int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
    return video.get(cv2.CAP_PROP_FPS) or 25.0, count, _frames(video)


def _frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    # to the end of the file, since the stated number of frames may be wrong
    while (read := video.read())[0]:
        yield read[1]
