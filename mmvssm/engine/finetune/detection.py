"""Custom detection datasets: COCO files and the images that they list."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from mmvssm.files import atomic_write
from mmvssm.messages import join_names

from .data import (
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
)

#: Pixels by which a box may extend beyond its image.
SLACK = 2


class Coco:
    """The content of a COCO file, checked.

    Args:
        path: The file.
        watch: Shows progress.

    Attributes:
        path: The file.
        content: The lists ``images``, ``annotations`` and ``categories``.
        completed: Whether fields were added that evaluation needs.
        notes: Notes for the user.

    Raises:
        DataError: If the file is not a COCO file, or cannot be used for training.
    """

    def __init__(self, path: Path, watch: Watch = unwatched) -> None:
        self.path, self.completed, self.notes = path, False, []
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, UnicodeDecodeError) as error:
            raise DataError(f"{str(path)!r} cannot be read as JSON: {error}") from None
        for name in ("images", "annotations", "categories"):
            part = content.get(name) if isinstance(content, dict) else None
            if not part or not all(isinstance(item, dict) for item in part):
                raise DataError(
                    f"{str(path)!r} has no {name}: a COCO file holds the lists images, annotations "
                    "and categories"
                )
        self.content: dict[str, list[dict]] = content
        self._check_categories()
        self._check_images()
        self._check_annotations(watch)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the categories in the order of the file, which gives their labels."""
        return tuple(category["name"] for category in self.content["categories"])

    @property
    def images(self) -> list[dict]:
        """The images as the file describes them."""
        return self.content["images"]

    @property
    def masks(self) -> bool:
        """Whether the annotations have masks.

        Raises:
            DataError: If only some of them have.
        """
        bare = [part for part in self.content["annotations"] if not part.get("segmentation")]
        if bare and len(bare) < len(self.content["annotations"]):
            raise DataError(
                f"{self._name(bare[0])} has no segmentation but others "
                "have one: give all of them a segmentation, or none to train only on boxes"
            )
        return not bare

    def part(self, images: list[dict]) -> dict[str, Any]:
        """Return the content of the file restricted to some images."""
        ids = {image["id"] for image in images}
        annotations = [part for part in self.content["annotations"] if part["image_id"] in ids]
        return dict(self.content, images=images, annotations=annotations)

    def _require(self, part: dict, kind: str, *names: str) -> None:
        for name in names:
            if part.get(name) is None:
                raise DataError(
                    f"{kind} {part.get('id', part)} of {str(self.path)!r} has no {name!r}"
                )

    def _unique(self, kind: str, name: str, values: list) -> None:
        value, count = Counter(values).most_common(1)[0]
        if count > 1:
            raise DataError(
                f"{count} {kind} of {str(self.path)!r} have the {name} {value!r}: it must be unique"
            )

    def _check_categories(self) -> None:
        categories = self.content["categories"]
        for category in categories:
            self._require(category, "category", "id", "name")
        for name in ("id", "name"):
            self._unique("categories", name, [category[name] for category in categories])

    def _check_images(self) -> None:
        for image in self.images:
            self._require(image, "image", "id", "file_name", "width", "height")
        for name in ("id", "file_name"):
            self._unique("images", name, [image[name] for image in self.images])

    def _check_annotations(self, watch: Watch) -> None:
        images = {image["id"]: image for image in self.images}
        labels = {category["id"]: category["name"] for category in self.content["categories"]}
        small = 0
        for part in watch(self.content["annotations"], f"annotations of {self.path}"):
            self._require(part, "annotation", "id", "image_id", "category_id", "bbox")
            if part["image_id"] not in images:
                raise DataError(
                    f"{self._name(part)} has the image_id {part['image_id']!r}, which is not listed"
                )
            if part["category_id"] not in labels:
                raise DataError(
                    f"{self._name(part)} has the category_id {part['category_id']!r}, but the "
                    f"categories have the ids {join_names(list(labels))}: add the category or "
                    "correct the id"
                )
            self._check_box(part, images[part["image_id"]])
            small += min(part["bbox"][2:]) < 1
            if "iscrowd" not in part or "area" not in part:
                part.setdefault("iscrowd", 0)
                part.setdefault("area", part["bbox"][2] * part["bbox"][3])
                self.completed = True
        self._unique("annotations", "id", [part["id"] for part in self.content["annotations"]])
        if small == len(self.content["annotations"]):
            raise DataError(
                f"all boxes of {str(self.path)!r} are smaller than a pixel: boxes are "
                "[x, y, width, height] in pixels, not in fractions of the image"
            )
        if small:
            self.notes.append(
                f"{small} boxes of {self.path} are smaller than a pixel and are skipped."
            )
        used = {part["category_id"] for part in self.content["annotations"]}
        unused = [name for number, name in labels.items() if number not in used]
        if unused:
            self.notes.append(f"{self.path} has no boxes of {join_names(unused)}.")

    def _check_box(self, part: dict, image: dict) -> None:
        box = part["bbox"]
        numbers = isinstance(box, list) and all(isinstance(v, (int, float)) for v in box)
        if not numbers or len(box) != 4 or not all(map(math.isfinite, box)) or min(box[2:]) < 0:
            raise DataError(
                f"{self._name(part)} has the box {box!r}: a box is [x, y, width, height] in pixels"
            )
        x, y, width, height = box
        beyond = (-x, -y, x + width - image["width"], y + height - image["height"])
        if max(beyond) > SLACK:
            raise DataError(
                f"{self._name(part)} has the box {box}, which extends beyond its image "
                f"{image['file_name']!r} of {image['width']} x {image['height']} pixels: a box is "
                "[x, y, width, height] in pixels"
            )

    def _name(self, part: dict) -> str:
        return f"annotation {part['id']} of {str(self.path)!r}"


def read_detection(
    root: str | Path, out: str | Path, layout: Layout | None = None, watch: Watch = unwatched
) -> OwnData:
    """Find and check COCO files and their images below ``root``.

    The function looks for ``annotations/instances_train*.json`` and similar names, or for
    ``_annotations.coco.json`` in the folder of the images. Without a validation file, a fifth of
    the images is held out.

    Args:
        root: Folder of the data.
        out: Folder for new COCO files, created if needed. They are written for held-out parts, to
            use the categories of the training file, or to add fields that evaluation needs.
        layout: Other paths of files and folders.
        watch: Shows progress.

    Raises:
        DataError: If the data cannot be used for training.
    """
    root, layout, out = require_root(root), layout or Layout(), Path(out)
    train_file = _find_file(root, layout.train_annotations, TRAIN)
    if train_file is None:
        raise DataError(
            f"there is no COCO file such as {str(root / 'annotations/instances_train.json')!r}: "
            "name it with --train-annotations"
        )
    val_file = _find_file(root, layout.val_annotations, VAL)
    train = Coco(train_file, watch)
    train_images = _find_images(root, layout.train_images, train, TRAIN)
    notes = list(train.notes)
    masks = train.masks
    if val_file is None:
        count = len(train.images)
        kept, held_out = hold_out(train.images)
        if not held_out:
            raise DataError(f"{str(train_file)!r} has a single image, so none can be held out")
        notes.append(held_out_note(len(held_out), count))
        parts = {"train": train.part(kept), "val": train.part(held_out)}
        val, val_images = train, train_images
    else:
        val = Coco(val_file, watch)
        val_images = _find_images(root, layout.val_images, val, VAL)
        if masks and not val.masks:
            raise DataError(
                f"{str(val_file)!r} has no segmentations but {str(train_file)!r} has: give both "
                "segmentations, or none to train only on boxes"
            )
        parts = {}
        if train.completed:
            parts["train"] = train.content
        if _adopt_categories(val, train) or val.completed:
            parts["val"] = val.content
        notes += val.notes
    for coco, folder in {train: train_images, val: val_images}.items():
        notes += _check_files(coco, folder, watch)
    if not masks:
        notes.append(f"{train_file} has no segmentations: only boxes are trained.")
    sides = {"train": (train, train_images), "val": (val, val_images)}
    splits = {
        name: _write(coco, folder, parts.get(name), out / f"{name}.json")
        for name, (coco, folder) in sides.items()
    }
    return OwnData(train.classes, **splits, notes=tuple(notes), masks=masks)


def _write(coco: Coco, folder: Path, content: dict | None, path: Path) -> Split:
    """Describe a split by its file, or by a new file with ``content``."""
    if content is None:
        return Split(str(folder), str(coco.path), len(coco.images))
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content)
    atomic_write(path, lambda part: part.write_text(text))
    return Split(str(folder), str(path), len(content["images"]))


def _find_file(root: Path, given: str | None, names: tuple[str, ...]) -> Path | None:
    if given is not None:
        if not (root / given).is_file():
            raise DataError(f"there is no annotation file {str(root / given)!r}")
        return root / given
    for pattern in ("annotations/instances_{}.json", "annotations/{}.json", "{}.json",
                    "{}/_annotations.coco.json"):  # fmt: skip
        for name in names:
            if (root / pattern.format(name)).is_file():
                return root / pattern.format(name)
    return None


def _find_images(root: Path, given: str | None, coco: Coco, names: tuple[str, ...]) -> Path:
    first = coco.images[0]["file_name"]
    folders = (root / name / part for part in ("", "images") for name in names)
    usual = [coco.path.parent, *folders, *(root / "images" / name for name in names)]
    usual += [root / "images", root]
    own = find_folder(root, given, ())
    if own is not None:
        usual = [own]
    for folder in usual:
        if (folder / first).is_file():
            return folder
    raise DataError(
        f"the image {first!r} of {str(coco.path)!r} is in none of the folders "
        f"{join_names([folder for folder in usual if folder.is_dir()])}: name the folder of the "
        "images with --train-images or --val-images"
    )


def _adopt_categories(val: Coco, train: Coco) -> bool:
    """Replace the categories of ``val`` by those of ``train``; return whether they differed.

    Categories are matched by name. Labels are indices into a file's list of categories, so the two
    lists must be the same.
    """
    own, theirs = val.content["categories"], train.content["categories"]
    same = [(part["id"], part["name"]) for part in own] == [
        (part["id"], part["name"]) for part in theirs
    ]
    if same:
        return False
    ids = {part["name"]: part["id"] for part in theirs}
    strange = [part["name"] for part in own if part["name"] not in ids]
    if strange:
        raise DataError(
            f"category {strange[0]!r} of {str(val.path)!r} is not one of the categories of "
            f"{str(train.path)!r} ({join_names(train.classes)}): rename or remove it"
        )
    new = {part["id"]: ids[part["name"]] for part in own}
    for part in val.content["annotations"]:
        part["category_id"] = new[part["category_id"]]
    val.content["categories"] = theirs
    val.notes.append(f"{val.path} is read with the categories of {train.path}.")
    return True


def _check_files(coco: Coco, folder: Path, watch: Watch) -> list[str]:
    """Check that all images exist, and that a sample can be decoded and has the stated sizes."""
    there = set(list_images(folder))
    for image in coco.images:
        name = image["file_name"]
        if name not in there and not (folder / name).is_file():
            raise DataError(f"there is no image {str(folder / name)!r}, which {coco.path} lists")
    for image in watch(sample(coco.images), f"images of {folder}"):
        size = size_of(folder / image["file_name"])
        if size != (image["width"], image["height"]):
            raise DataError(
                f"{str(folder / image['file_name'])!r} has {size[0]} x {size[1]} pixels, but "
                f"{str(coco.path)!r} says {image['width']} x {image['height']}: correct the file, "
                "including its boxes"
            )
    if len(coco.images) > SAMPLE:
        return [f"{sampled(len(coco.images), 'images')} of {coco.path} were opened."]
    return []
