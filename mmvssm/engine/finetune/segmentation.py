"""Custom segmentation datasets: images and label maps, in folders like those of ADE20K."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmvssm.messages import join_names

from .data import (
    IMAGES,
    SAMPLE,
    TRAIN,
    VAL,
    DataError,
    Layout,
    OwnData,
    Split,
    Watch,
    find_folder,
    held_out_note,
    hold_out,
    list_images,
    require_root,
    sample,
    sampled,
    size_of,
    unwatched,
    write_lines,
)

#: Value of pixels without a class in a label map.
IGNORED = 255
#: File in the data folder with the name of a class in each line.
CLASSES = "classes.txt"

_IMAGES, _MAPS = ("images", "img_dir"), ("annotations", "ann_dir", "labels", "masks")


class Pairs:
    """Images and label maps with the same names in two folders.

    Args:
        images: Folder of the images.
        maps: Folder of the label maps.

    Attributes:
        images: Folder of the images.
        maps: Folder of the label maps.
        stems: Names without suffix, sorted.
        suffixes: Suffixes of images and of label maps.

    Raises:
        DataError: If there are no images, an image lacks its map, or suffixes differ.
    """

    def __init__(self, images: Path, maps: Path) -> None:
        self.images, self.maps = images, maps
        names, map_names = list_images(images), list_images(maps)
        if not names:
            raise DataError(f"{str(images)!r} holds no images ({', '.join(IMAGES)})")
        stems = {_stem(name) for name in map_names}
        self.stems = [_stem(name) for name in names]
        missing = [name for name in names if _stem(name) not in stems]
        if missing:
            raise DataError(
                f"the image {str(images / missing[0])!r} has no label map "
                f"{str(maps / _stem(missing[0]))!r}.png: maps must have the names of their images"
            )
        matched = set(self.stems)
        used = [name for name in map_names if _stem(name) in matched]
        self.suffixes = _suffix(images, names), _suffix(maps, used)

    def image(self, stem: str) -> Path:
        """Return the path of an image."""
        return self.images / f"{stem}{self.suffixes[0]}"

    def map(self, stem: str) -> Path:
        """Return the path of a label map."""
        return self.maps / f"{stem}{self.suffixes[1]}"

    def split(self, stems: Sequence[str], path: Path) -> Split:
        """List some of the pairs in a file, and return their description."""
        listed = write_lines(path, stems)
        return Split(str(self.images), listed, len(stems), str(self.maps), self.suffixes)


def _stem(name: str) -> str:
    return name[: name.rindex(".")]


def _suffix(folder: Path, names: list[str]) -> str:
    suffixes = sorted({name[name.rindex(".") :] for name in names})
    if len(suffixes) > 1:
        raise DataError(
            f"the files of {str(folder)!r} end in {' and '.join(suffixes)}: they must have the same"
            " suffix"
        )
    return suffixes[0]


def read_segmentation(
    root: str | Path, out: str | Path, layout: Layout | None = None, watch: Watch = unwatched
) -> OwnData:
    """Find and check images and label maps below ``root``.

    The folders are ``images/{training,validation}`` and ``annotations/{training,validation}``, or
    ``train`` and ``val``. The value 255 is ignored. ``classes.txt`` holds the names of the classes;
    without it, each value in the maps is a class.

    Args:
        root: Folder of the data.
        out: Folder for the lists of images, created if needed.
        layout: Other folders, and whether 0 is ignored.
        watch: Shows progress.

    Raises:
        DataError: If the data cannot be used for training.
    """
    root, layout, out = require_root(root), layout or Layout(), Path(out)
    train = _find_pairs(root, layout.train_images, layout.train_annotations, TRAIN, "train")
    if train is None:
        raise DataError(
            f"there are no folders {str(root / 'images/training')!r} and "
            f"{str(root / 'annotations/training')!r}: name them with --train-images and "
            "--train-annotations"
        )
    val = _find_pairs(root, layout.val_images, layout.val_annotations, VAL, "val")
    notes = []
    train_stems, val_stems = train.stems, val.stems if val else []
    if val is None:
        val = train
        train_stems, val_stems = hold_out(train.stems)
        if not val_stems:
            raise DataError(f"{str(train.images)!r} holds a single image, so none can be held out")
        notes.append(held_out_note(len(val_stems), len(train.stems)))
    names = _read_names(root / CLASSES)
    if names is None and len(train_stems) > SAMPLE:
        raise DataError(
            f"{len(train_stems):,} label maps are too many to search for classes: write the name "
            f"of each class in a line of {str(root / CLASSES)!r}"
        )
    reduce = layout.reduce_zero_label
    values = _read_values(train, train_stems, watch)
    classes = names or _classes_of(values, reduce, root)
    for pairs, found in ((train, values), (val, _read_values(val, val_stems, watch))):
        _check_values(pairs, found, classes, reduce)
    if len(classes) < 2:
        raise DataError(
            f"{str(train.maps)!r} holds only one class (255 is ignored): to separate objects from"
            " background, make the background a class with its own value, such as 0"
        )
    absent = [name for label, name in enumerate(classes) if label + reduce not in values]
    if absent:
        notes.append(f"None of the maps read in {train.maps} shows {join_names(absent)}.")
    notes.append(
        "In the label maps 255 is ignored; "
        + (
            f"0 is ignored, too, and 1 is the first class, {classes[0]!r} (--reduce-zero-label)."
            if reduce
            else f"0 is the first class, {classes[0]!r} (to ignore it: --reduce-zero-label)."
        )
    )
    if len(train_stems) > SAMPLE:
        notes.append(f"{sampled(len(train_stems), 'images and maps')} of {root} were opened.")
    return OwnData(
        tuple(classes),
        train.split(train_stems, out / "train.txt"),
        val.split(val_stems, out / "val.txt"),
        tuple(notes),
        reduce_zero_label=reduce,
    )


def _find_pairs(
    root: Path, images: str | None, maps: str | None, names: tuple[str, ...], what: str
) -> Pairs | None:
    if (images is None) != (maps is None):
        raise DataError(f"--{what}-images and --{what}-annotations must be given together")
    found = [
        find_folder(root, given, [f"{parent}/{name}" for parent in parents for name in names])
        for given, parents in ((images, _IMAGES), (maps, _MAPS))
    ]
    if found[0] is None and found[1] is None:
        return None
    for kind, folder, other in (("images", found[0], found[1]), ("label maps", found[1], found[0])):
        if folder is None:
            raise DataError(
                f"there is no folder of {kind} for {str(other)!r}: use "
                "images/training with annotations/training, and images/validation with "
                "annotations/validation"
            )
    return Pairs(*found)


def _read_names(path: Path) -> list[str] | None:
    if not path.is_file():
        return None
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    names = [name for name in names if name]
    if len(set(names)) < len(names):
        raise DataError(f"{str(path)!r} names a class twice: use one line each, ordered by value")
    return names or None


def _read_values(pairs: Pairs, stems: list[str], watch: Watch) -> dict[int, Path]:
    """Decode a sample of images and maps; return each value with the first map that has it."""
    found: dict[int, Path] = {}
    for stem in watch(sample(stems), f"images and label maps of {pairs.maps}"):
        path = pairs.map(stem)
        size = size_of(pairs.image(stem))
        size_of(path)
        with Image.open(path) as image:
            labels = np.asarray(image)
        if labels.ndim != 2:
            raise DataError(
                f"the label map {str(path)!r} is a colour image: a map must have one channel with "
                "the index of a class at each pixel (a palette is fine)"
            )
        if labels.shape[::-1] != size:
            raise DataError(
                f"the label map {str(path)!r} has {labels.shape[1]} x {labels.shape[0]} pixels, "
                f"but its image {size[0]} x {size[1]}: they must be the same"
            )
        for value in np.unique(labels).tolist():
            found.setdefault(int(value), path)
    return found


def _classes_of(values: dict[int, Path], reduce: bool, root: Path) -> list[str]:
    """Name the classes by their values, which must be consecutive."""
    used = sorted(value for value in values if value != IGNORED and not (reduce and value == 0))
    if used != list(range(int(reduce), len(used) + reduce)):
        raise DataError(
            f"the label maps hold the values {join_names(used, 12)}, which are not consecutive from"
            f" {int(reduce)} on: renumber them, or write the names of all classes into"
            f" {str(root / CLASSES)!r}, one per line"
        )
    return [str(value) for value in used]


def _check_values(
    pairs: Pairs, values: dict[int, Path], classes: Sequence[str], reduce: bool
) -> None:
    last = len(classes) - 1 + reduce
    for value, path in sorted(values.items()):
        if value > last and value != IGNORED:
            zero = "" if reduce else "; if 0 means unlabelled, add --reduce-zero-label"
            raise DataError(
                f"the label map {str(path)!r} holds the value {value}, but the {len(classes)} "
                f"classes have the values {int(reduce)} to {last} (255 is ignored){zero}"
            )
