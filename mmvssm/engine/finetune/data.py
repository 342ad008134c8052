"""Own data: their description, and what reading them has in common for all tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from mmvssm.files import atomic_write

#: Endings of image files, as mmpretrain's datasets know them.
IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif")
#: Most images of a split that are decoded to see whether they can be; evenly spread.
SAMPLE = 2000
#: Share of the images that is held out where there are none to validate on, and its seed.
HELD_OUT, SEED = 0.2, 0

TRAIN = ("train", "train2017", "training")
VAL = ("val", "val2017", "valid", "validation")

T = TypeVar("T")
#: Passes items on and shows how far they are: called with the items and what is done to them.
Watch = Callable[[Sequence[T], str], Iterable[T]]

_ORIENTATION = 0x0112


class DataError(ValueError):
    """Data that cannot be trained on; the message names the file and what would be right."""


@dataclass(frozen=True)
class Layout:
    """Where data lie that do not lie as usual; paths below the data's folder.

    Attributes:
        train_images: Folder of the images to train on, in classification with a folder a class.
        train_annotations: COCO file of these images, or folder of their label maps.
        val_images: Folder of the images to validate on.
        val_annotations: COCO file or label maps of these.
        reduce_zero_label: In label maps 0 is no class, and 1 the first one.
    """

    train_images: str | None = None
    train_annotations: str | None = None
    val_images: str | None = None
    val_annotations: str | None = None
    reduce_zero_label: bool = False


@dataclass(frozen=True)
class Split:
    """The images of a split.

    Attributes:
        images: Folder of the images.
        ann_file: File that lists them: lines ``FILE LABEL`` (classification), lines of names
            without ending (segmentation), COCO (detection).
        count: Their number.
        maps: Folder of the label maps (segmentation).
        suffixes: Endings of images and label maps (segmentation).
    """

    images: str
    ann_file: str
    count: int
    maps: str = ""
    suffixes: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class OwnData:
    """Data of a user's, found fit for training.

    Attributes:
        classes: Names of the classes, in the order of their labels.
        train: What to train on.
        val: What to validate on.
        notes: What the user should know about them, a sentence each.
        masks: Whether boxes have masks (detection).
        reduce_zero_label: Whether 0 in label maps is no class (segmentation).
    """

    classes: tuple[str, ...]
    train: Split
    val: Split
    notes: tuple[str, ...] = ()
    masks: bool = False
    reduce_zero_label: bool = False


def unwatched(items: Sequence[T], doing: str) -> Iterable[T]:
    """Pass items on and show nothing."""
    return items


def require_root(root: str | Path) -> Path:
    """Check that the data's folder is there."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"there is no data folder {str(root)!r}, here {str(root.absolute())!r}")
    return root


def find_folder(root: Path, given: str | None, names: Sequence[str]) -> Path | None:
    """Return the folder that is given, which must exist, or the first of the usual names."""
    if given is not None:
        if not (root / given).is_dir():
            raise DataError(f"there is no folder {str(root / given)!r}")
        return root / given
    return next((root / name for name in names if (root / name).is_dir()), None)


def list_images(folder: Path) -> list[str]:
    """Return the images at any depth, by their paths below ``folder``; hidden ones are left out."""
    found, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(place).relative_to(folder)
        found += [
            (below / name).as_posix()
            for name in files
            if name.lower().endswith(IMAGES) and not name.startswith(".")
        ]
    return sorted(found)


def sample(items: Sequence[T], most: int | None = None) -> Sequence[T]:
    """Return at most ``SAMPLE`` (or ``most``) of the items, evenly spread."""
    most = SAMPLE if most is None else most
    if len(items) <= most:
        return items
    return [items[index * len(items) // most] for index in range(most)]


def sampled(count: int, what: str) -> str:
    """Say how much of ``count`` is looked at."""
    return f"{min(count, SAMPLE):,} of {count:,} {what}"


def size_of(path: Path) -> tuple[int, int]:
    """Decode an image and return ``(width, height)`` as training sees it.

    Raises:
        DataError: If it cannot be decoded to its end.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
            image.draft("RGB", (1, 1))  # of JPEG, an eighth of the resolution at an eighth of cost
            image.load()
    except FileNotFoundError:
        raise DataError(f"there is no image {str(path)!r}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{str(path)!r} cannot be read as an image ({error}): mend it or take it out"
        ) from None
    return (height, width) if turned else (width, height)


def hold_out(items: Sequence[T]) -> tuple[list[T], list[T]]:
    """Divide items into those to train on and ``HELD_OUT`` of them, at least one, to validate on.

    Which ones follows from their number and ``SEED`` alone. A single item is trained on.
    """
    count = min(max(round(len(items) * HELD_OUT), 1), len(items) - 1)
    chosen = set(np.random.default_rng(SEED).permutation(len(items))[:count].tolist())
    return (
        [item for index, item in enumerate(items) if index not in chosen],
        [item for index, item in enumerate(items) if index in chosen],
    )


def held_out_note(val: int, count: int, what: str = "") -> str:
    """Say what is held out."""
    return (
        f"There is nothing to validate on: {val} of {count} images{what} are held out "
        f"(seed {SEED}, the same ones every time)."
    )


def write_lines(path: Path, lines: Iterable[str]) -> str:
    """Write a list whole or not at all; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for line in lines)
    atomic_write(path, lambda part: part.write_text(text, encoding="utf-8"))
    return str(path)
