"""Description of custom datasets, and code for reading them that all tasks share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from mmvssm.files import atomic_write

#: Suffixes of image files, as in mmpretrain's datasets.
IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif")
#: Largest number of images per split that are decoded as a check, evenly spaced.
SAMPLE = 2000
#: Fraction of the images to hold out if there is no validation data, and its seed.
HELD_OUT, SEED = 0.2, 0

TRAIN = ("train", "train2017", "training")
VAL = ("val", "val2017", "valid", "validation")

T = TypeVar("T")
#: Progress function: called with items and a description, it yields the items.
Watch = Callable[[Sequence[T], str], Iterable[T]]

_ORIENTATION = 0x0112


class DataError(ValueError):
    """Data cannot be used for training; the message names the file and what is expected."""


@dataclass(frozen=True)
class Layout:
    """Deviations from the usual layout of data; paths are relative to the data folder.

    Attributes:
        train_images: Folder of the training images; for classification, with one folder per class.
        train_annotations: COCO file of these images, or folder of their label maps.
        val_images: Folder of the validation images.
        val_annotations: COCO file of these images, or folder of their label maps.
        reduce_zero_label: Whether 0 in label maps is ignored and 1 is the first class.
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
            without suffix (segmentation), or COCO (detection).
        count: Number of images.
        maps: Folder of the label maps (segmentation).
        suffixes: Suffixes of images and label maps (segmentation).
    """

    images: str
    ann_file: str
    count: int
    maps: str = ""
    suffixes: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class OwnData:
    """A custom dataset that passed the checks.

    Attributes:
        classes: Names of the classes, in the order of their labels.
        train: Training split.
        val: Validation split.
        notes: Notes for the user, a sentence each.
        masks: Whether boxes have masks (detection).
        reduce_zero_label: Whether 0 in label maps is ignored (segmentation).
    """

    classes: tuple[str, ...]
    train: Split
    val: Split
    notes: tuple[str, ...] = ()
    masks: bool = False
    reduce_zero_label: bool = False


def unwatched(items: Sequence[T], doing: str) -> Iterable[T]:
    """Return the items without showing progress."""
    return items


def require_root(root: str | Path) -> Path:
    """Check that the data folder exists, and return its path."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"there is no data folder {str(root)!r}, i.e. {str(root.absolute())!r}")
    return root


def find_folder(root: Path, given: str | None, names: Sequence[str]) -> Path | None:
    """Return the given folder, which must exist, or the first existing one of the usual names."""
    if given is not None:
        if not (root / given).is_dir():
            raise DataError(f"there is no folder {str(root / given)!r}")
        return root / given
    return next((root / name for name in names if (root / name).is_dir()), None)


def list_images(folder: Path) -> list[str]:
    """Return the paths of all images below ``folder``, relative to it, except hidden ones."""
    found, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a cyclic link
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
    """Return at most ``SAMPLE`` (or ``most``) of the items, evenly spaced."""
    most = SAMPLE if most is None else most
    if len(items) <= most:
        return items
    return [items[index * len(items) // most] for index in range(most)]


def sampled(count: int, what: str) -> str:
    """Describe how many of ``count`` items are checked."""
    return f"{min(count, SAMPLE):,} of {count:,} {what}"


def size_of(path: Path) -> tuple[int, int]:
    """Decode an image and return ``(width, height)`` after applying its EXIF orientation.

    Raises:
        DataError: If it cannot be decoded completely.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
            image.draft("RGB", (1, 1))  # decodes JPEG faster, at an eighth of the resolution
            image.load()
    except FileNotFoundError:
        raise DataError(f"there is no image {str(path)!r}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{str(path)!r} cannot be read as an image ({error}): repair or remove it"
        ) from None
    return (height, width) if turned else (width, height)


def hold_out(items: Sequence[T]) -> tuple[list[T], list[T]]:
    """Split items into a training part and a validation part of ``HELD_OUT``, at least one item.

    The split depends only on the number of items and ``SEED``. A single item is used for training.
    """
    count = min(max(round(len(items) * HELD_OUT), 1), len(items) - 1)
    chosen = set(np.random.default_rng(SEED).permutation(len(items))[:count].tolist())
    return (
        [item for index, item in enumerate(items) if index not in chosen],
        [item for index, item in enumerate(items) if index in chosen],
    )


def held_out_note(val: int, count: int, what: str = "") -> str:
    """Describe what is held out."""
    return (
        f"There is no validation data: {val} of {count} images{what} are held out "
        f"(seed {SEED}, the same ones every time)."
    )


def write_lines(path: Path, lines: Iterable[str]) -> str:
    """Write a list of lines atomically, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for line in lines)
    atomic_write(path, lambda part: part.write_text(text, encoding="utf-8"))
    return str(path)
