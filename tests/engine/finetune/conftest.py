"""Fixtures: small data sets of each kind, like a user's, and the recipes to train on them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[3]
RECIPES = dict(
    mmpretrain="vmamba-tiny-s1l8_8xb128_in1k",
    mmdet="mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco",
    mmseg="vmamba-tiny-s1l8_upernet_4xb4-160k_ade20k-512x512",
)


def write_image(path, height=32, width=40, value=128):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((height, width, 3), value, np.uint8))


@pytest.fixture
def image():
    """Writes an image of one colour, 40 x 32 pixels by default."""
    return write_image


@pytest.fixture
def recipe():
    """Reads the recipe of a library."""
    return lambda library: Config.fromfile(ROOT / "configs" / "vmamba" / f"{RECIPES[library]}.py")


@pytest.fixture
def photos(tmp_path):
    """Two cats, three dogs and an owl to train on; a dog and an owl to validate on."""
    folder = tmp_path / "photos"
    for split, counts in (
        ("train", dict(cat=2, dog=3, owl=1)),
        ("val", dict(dog=1, owl=1)),
    ):
        for name, count in counts.items():
            for number in range(count):
                write_image(folder / split / name / f"{name} {number}.jpg")
    return folder


def coco(count, categories=((3, "cat"), (7, "dog")), masks=True):
    """Images `0.jpg`..., each with a box of either category."""
    images = [
        dict(id=number, file_name=f"{number}.jpg", width=40, height=32) for number in range(count)
    ]
    annotations = [
        dict(
            id=10 * number + index,
            image_id=number,
            category_id=category,
            bbox=[4 + 8 * index, 5, 10, 20],
            area=200,
            iscrowd=0,
            **(dict(segmentation=[[4, 5, 14, 5, 14, 25, 4, 25]]) if masks else {}),
        )
        for number in range(count)
        for index, (category, _) in enumerate(categories)
    ]
    named = [dict(id=number, name=name) for number, name in categories]
    return dict(images=images, annotations=annotations, categories=named)


@pytest.fixture
def make_coco():
    return coco


@pytest.fixture
def boxes(tmp_path):
    """COCO files of five and two images, and the images."""
    folder = tmp_path / "boxes"
    for split, count in (("train", 5), ("val", 2)):
        for number in range(count):
            write_image(folder / split / f"{number}.jpg")
        path = folder / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(coco(count)))
    return folder


@pytest.fixture
def change(boxes):
    """Changes a COCO file of `boxes` by a function of its content."""

    def apply(function, split="train"):
        path = boxes / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        function(content)
        path.write_text(json.dumps(content))

    return apply


def write_map(path, *rows):
    """A map of 40 x 32 pixels, with bands of the given values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = np.repeat(np.array(rows, np.uint8), -(-32 // len(rows)))[:32]
    assert cv2.imwrite(str(path), np.repeat(bands[:, None], 40, axis=1))


@pytest.fixture
def label_map():
    """Writes a label map with bands of values."""
    return write_map


@pytest.fixture
def maps(tmp_path):
    """Five and two images whose maps hold 0, 1, 2 and 255."""
    folder = tmp_path / "maps"
    for split, count in (("training", 5), ("validation", 2)):
        for number in range(count):
            write_image(folder / "images" / split / f"{number}.jpg")
            write_map(folder / "annotations" / split / f"{number}.png", 0, 1, 2, 255)
    return folder
