#!/usr/bin/env python
"""Write the demo datasets from real handwritten digits, without a download.

scikit-learn ships 1,797 handwritten digits of 8x8 pixels. This tool converts them to a
classification, a detection and a segmentation dataset, each in the layout of the standard
benchmark of its task:

    DIR/digits-cls  like ImageNet: train/<digit>/*.png, val/<digit>/*.png (32x32)
    DIR/digits-det  like COCO: {train,val}/*.png (128x128),
                    annotations/instances_{train,val}.json with boxes and RLE masks
    DIR/digits-seg  like ADE20K: images/{training,validation}/*.png (the same canvases),
                    annotations/{training,validation}/*.png with 0 = unlabelled (the soft
                    rim of a stroke), 1 = background, 2..11 = the digits 0..9

Every fifth digit of each class is held out: no validation image shows a training digit.
The files depend only on the seed. A dataset is created atomically, and an existing one is
kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from rich.progress import track
from sklearn.datasets import load_digits

CLASSES = tuple(str(digit) for digit in range(10))
CLS_SIZE = 32
CANVAS_SIZE = 128
NUM_CANVASES = {"train": 1000, "val": 100}
# A pixel belongs to a digit if its ink exceeds INK; between RIM and INK it is neither digit nor
# background.
INK, RIM = 0.4, 0.1


class Digit(NamedTuple):
    """A digit on a canvas: its label, and the mask `(H, W)` of its pixels on the canvas."""

    label: int
    mask: np.ndarray


class Canvas(NamedTuple):
    """An image `(H, W, 3)` uint8, its digits, and the `(H, W)` mask of unlabelled pixels."""

    image: np.ndarray
    digits: list[Digit]
    rim: np.ndarray


def load_split() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Load the digits as `split -> (ids (N,), ink (N, 8, 8) in 0..1, labels (N,))`."""
    digits = load_digits()
    held_out = np.zeros(len(digits.target), dtype=bool)
    for label in range(10):
        held_out[np.flatnonzero(digits.target == label)[4::5]] = True
    ids = np.arange(len(digits.target))
    ink = (digits.images / 16).astype(np.float32)
    return {
        split: (ids[chosen], ink[chosen], digits.target[chosen])
        for split, chosen in (("train", ~held_out), ("val", held_out))
    }


def enlarge(ink: np.ndarray, size: int) -> np.ndarray:
    """Resample ink `(8, 8)` to `(size, size)`, clipped to 0..1."""
    return np.clip(cv2.resize(ink, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)


def texture(rng: np.random.Generator) -> np.ndarray:
    """Draw a dark canvas `(H, W, 3)` of coloured noise at three scales, values 20..120."""
    shape = (CANVAS_SIZE, CANVAS_SIZE)
    canvas = rng.uniform(40, 100, size=(1, 1, 3)) * np.ones((*shape, 1))
    for cells, amplitude in ((4, 20), (16, 10), (64, 8)):
        noise = rng.normal(size=(cells, cells, 3)).astype(np.float32)
        canvas += amplitude * cv2.resize(noise, shape, interpolation=cv2.INTER_CUBIC)
    return np.clip(canvas, 20, 120)


def draw_canvas(rng: np.random.Generator, ink: np.ndarray, labels: np.ndarray) -> Canvas:
    """Draw three to six disjoint digits, 24 to 48 pixels large, on a texture."""
    image = texture(rng)
    taken = np.zeros((CANVAS_SIZE, CANVAS_SIZE), dtype=bool)
    rim = np.zeros_like(taken)
    digits: list[Digit] = []
    wanted = rng.integers(3, 7)
    for _ in range(100):
        size = int(rng.integers(24, 49))
        top, left = rng.integers(0, CANVAS_SIZE - size + 1, size=2)
        window = (slice(top, top + size), slice(left, left + size))
        if taken[window].any():
            continue
        taken[window] = True
        index = rng.integers(len(labels))
        alpha = enlarge(ink[index], size)
        colour = rng.uniform(160, 255, size=3)
        image[window] += alpha[..., None] * (colour - image[window])
        mask = np.zeros_like(taken)
        mask[window] = alpha > INK
        rim[window] = (alpha > RIM) & (alpha <= INK)
        digits.append(Digit(int(labels[index]), mask))
        if len(digits) == wanted:
            break
    return Canvas(image.round().astype(np.uint8), digits, rim)


def canvases(seed: int, split: str, what: str):
    """Yield the canvases of a split, the same ones for detection and segmentation."""
    _, ink, labels = load_split()[split]
    for index in track(range(NUM_CANVASES[split]), description=f"{what} {split}"):
        stream = np.random.default_rng([seed, split == "val", index])
        yield f"{index:06d}.png", draw_canvas(stream, ink, labels)


def write_png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image):
        raise OSError(f"cannot write {path}")


def encode_rle(mask: np.ndarray) -> dict:
    """Encode a mask in COCO's uncompressed run lengths, by column, starting with zeros."""
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    if flat[0]:
        edges = np.concatenate(([0], edges))
    runs = np.diff(np.concatenate(([0], edges, [flat.size])))
    return {"size": list(mask.shape), "counts": runs.tolist()}


def bounding_box(mask: np.ndarray) -> list[int]:
    """Return COCO's `[x, y, width, height]` of a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def write_cls(folder: Path, seed: int) -> None:
    """Write the digits in ImageNet's layout; the seed has no effect."""
    for split, (ids, ink, labels) in load_split().items():
        for number, image, label in track(
            list(zip(ids, ink, labels, strict=True)), description=f"digits-cls {split}"
        ):
            pixels = (255 * enlarge(image, CLS_SIZE)).round().astype(np.uint8)
            write_png(folder / split / CLASSES[label] / f"{number:04d}.png", pixels)


def write_det(folder: Path, seed: int) -> None:
    """Write canvases in COCO's layout: category ids 1..10, image and annotation ids from 1."""
    for split in NUM_CANVASES:
        images, annotations = [], []
        for name, canvas in canvases(seed, split, "digits-det"):
            write_png(folder / split / name, canvas.image)
            images.append(
                {
                    "id": len(images) + 1,
                    "file_name": name,
                    "height": CANVAS_SIZE,
                    "width": CANVAS_SIZE,
                }
            )
            annotations += [
                {
                    "id": len(annotations) + 1 + offset,
                    "image_id": len(images),
                    "category_id": digit.label + 1,
                    "bbox": bounding_box(digit.mask),
                    "area": int(digit.mask.sum()),
                    "segmentation": encode_rle(digit.mask),
                    "iscrowd": 0,
                }
                for offset, digit in enumerate(canvas.digits)
            ]
        path = folder / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path.write_text(json.dumps(content))


def write_seg(folder: Path, seed: int) -> None:
    """Write canvases in ADE20K's layout, in which 0 is unlabelled (`reduce_zero_label=True`)."""
    for split, name_of_split in (("train", "training"), ("val", "validation")):
        for name, canvas in canvases(seed, split, "digits-seg"):
            labels = np.ones(canvas.rim.shape, dtype=np.uint8)
            labels[canvas.rim] = 0
            for digit in canvas.digits:
                labels[digit.mask] = digit.label + 2
            write_png(folder / "images" / name_of_split / name, canvas.image)
            write_png(folder / "annotations" / name_of_split / name, labels)


WRITERS = {"cls": write_cls, "det": write_det, "seg": write_seg}


def make_data_set(root: Path, task: str, seed: int) -> Path:
    """Write one dataset below `root` unless it exists.

    Args:
        root: Folder of the datasets; created if needed.
        task: One of `cls`, `det`, `seg`.
        seed: Seed of textures, positions, sizes, colours and the choice of digits.

    Returns:
        The folder of the dataset.

    Raises:
        ValueError: If `root` is a file, or holds something else under the dataset's name.
        OSError: If a file cannot be written.
    """
    if root.exists() and not root.is_dir():
        raise ValueError(f"DIR must be a folder, but {root} is a file")
    folder = root / f"digits-{task}"
    stamp = {"data_set": folder.name, "seed": seed}
    if folder.exists():
        try:
            found = json.loads((folder / "demo_data.json").read_text())
        except (OSError, ValueError):
            raise ValueError(
                f"{folder} exists and was not written by this tool: "
                "move it away or choose another DIR"
            ) from None
        if found != stamp:
            raise ValueError(
                f"{folder} was written with seed {found.get('seed')}, not {seed}: "
                "remove it or choose another DIR"
            )
        print(f"{folder} is complete, kept")
        return folder
    partial = root / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        WRITERS[task](partial, seed)
        (partial / "demo_data.json").write_text(json.dumps(stamp))
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{folder} written")
    return folder


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder for the datasets")
    parser.add_argument("--seed", type=int, default=0, help="seed of the canvases (default 0)")
    parser.add_argument(
        "--task",
        nargs="+",
        choices=tuple(WRITERS),
        default=list(WRITERS),
        help="datasets to write (default: all)",
    )
    args = parser.parse_args()
    if args.seed < 0:
        parser.error(f"argument --seed: must not be negative, got {args.seed}")
    return args


def main() -> int:
    args = parse_args()
    try:
        for task in dict.fromkeys(args.task):
            make_data_set(args.dir, task, args.seed)
    except (OSError, ValueError) as error:
        print(f"make_demo_data: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
