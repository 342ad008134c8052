"""Custom classification datasets: one folder per class, like ImageNet."""

from __future__ import annotations

from pathlib import Path

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

Labelled = list[tuple[str, int]]


def read_classification(
    root: str | Path, out: str | Path, layout: Layout | None = None, watch: Watch = unwatched
) -> OwnData:
    """Find and check images in ``train/CLASS/`` and ``val/CLASS/`` below ``root``.

    Without ``train``, the folders below ``root`` are the classes. Without ``val``, a fifth of each
    class is held out.

    Args:
        root: Folder of the data.
        out: Folder for the lists of images, created if needed.
        layout: Other names of the two folders.
        watch: Shows progress.

    Raises:
        DataError: If the data cannot be used for training.
    """
    root, layout, out = require_root(root), layout or Layout(), Path(out)
    for name in ("train_annotations", "val_annotations"):
        if getattr(layout, name) is not None:
            raise DataError(
                f"{name} must not be given for classification, where folders are the classes, got "
                f"{getattr(layout, name)!r}"
            )
    val_folder = find_folder(root, layout.val_images, VAL)
    train_folder = find_folder(root, layout.train_images, TRAIN)
    if train_folder is None and val_folder is not None:
        raise DataError(
            f"there is no folder {str(root / 'train')!r} beside {str(val_folder)!r}: put the images"
            " of each class into train/CLASS/, or name the folder with --train-images"
        )
    train_folder = train_folder or root
    classes = _class_folders(train_folder)
    train = _labelled(train_folder, classes)
    empty = set(range(len(classes))) - {label for _, label in train}
    if empty:
        raise DataError(
            f"class folder {str(train_folder / classes[min(empty)])!r} holds no images "
            f"({', '.join(IMAGES)}): put some there or remove it"
        )
    if len(classes) < 2:
        raise DataError(
            f"{str(train_folder)!r} holds only one class, {classes[0]!r}: at least two are needed"
        )
    notes = []
    loose = [name for name in list_images(train_folder) if "/" not in name]
    if loose:
        notes.append(
            f"{len(loose)} images directly in {train_folder}, outside of class folders, are "
            f"skipped: {join_names(loose, 3)}."
        )
    if val_folder is None:
        count = len(train)
        train, val = _hold_out_of_each(train, len(classes))
        val_folder = train_folder
        notes.append(held_out_note(len(val), count, ", a fifth of each class,"))
    else:
        val = _validation(val_folder, train_folder, classes)
    for folder, images in ((train_folder, train), (val_folder, val)):
        for name, _ in watch(sample(images), f"images of {folder}"):
            size_of(folder / name)
        if len(images) > SAMPLE:
            notes.append(f"{sampled(len(images), 'images')} of {folder} were opened.")
    return OwnData(
        tuple(classes),
        _split(train_folder, train, out / "train.txt"),
        _split(val_folder, val, out / "val.txt"),
        tuple(notes),
    )


def _class_folders(folder: Path) -> list[str]:
    names = [part.name for part in folder.iterdir() if part.is_dir()]
    classes = sorted(name for name in names if not name.startswith("."))
    if not classes:
        raise DataError(
            f"{str(folder)!r} holds no folders: put the images of each class into its own folder"
        )
    return classes


def _labelled(folder: Path, classes: list[str]) -> Labelled:
    return [
        (f"{name}/{image}", label)
        for label, name in enumerate(classes)
        for image in (list_images(folder / name) if (folder / name).is_dir() else [])
    ]


def _validation(folder: Path, train_folder: Path, classes: list[str]) -> Labelled:
    strange = sorted(set(_class_folders(folder)) - set(classes))
    if strange:
        raise DataError(
            f"class {strange[0]!r} in {str(folder)!r} is not one of the classes in "
            f"{str(train_folder)!r} ({join_names(classes)}): rename or remove it"
        )
    images = _labelled(folder, classes)
    if not images:
        raise DataError(
            f"{str(folder)!r} holds no images in its class folders: put some there, or remove it "
            "to hold out a part of the training images"
        )
    return images


def _hold_out_of_each(images: Labelled, classes: int) -> tuple[Labelled, Labelled]:
    train: Labelled = []
    val: Labelled = []
    for label in range(classes):
        kept, held_out = hold_out([item for item in images if item[1] == label])
        train += kept
        val += held_out
    if not val:
        raise DataError(
            "each class has a single image, so none can be held out for validation: add images"
        )
    return train, val


def _split(folder: Path, images: Labelled, path: Path) -> Split:
    listed = write_lines(path, (f"{name} {label}" for name, label in images))
    return Split(str(folder), listed, len(images))
