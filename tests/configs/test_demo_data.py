import subprocess
import sys

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from sklearn.datasets import load_digits


def contents(folder):
    """Return the bytes of every file in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def coco(data, split):
    return COCO(str(data / "digits-det" / "annotations" / f"instances_{split}.json"))


def test_every_real_digit_is_in_one_split(data):
    real = load_digits()
    numbers = {}
    for split in ("train", "val"):
        for path in (data / "digits-cls").glob(f"{split}/*/*.png"):
            number = int(path.stem)
            assert number not in numbers
            numbers[number] = split
            assert int(path.parent.name) == real.target[number]
    assert sorted(numbers) == list(range(1797))
    held_out = [number for number, split in numbers.items() if split == "val"]
    assert len(held_out) == 355
    assert np.bincount(real.target[held_out]).min() >= 34


def test_pictures_show_the_real_digits(data):
    real = load_digits()
    for number in (0, 500, 1796):
        (path,) = (data / "digits-cls").glob(f"*/*/{number:04d}.png")
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert picture.shape == (32, 32) and picture.dtype == np.uint8
        small = cv2.resize(picture, (8, 8), interpolation=cv2.INTER_AREA) / 255
        assert np.abs(small - real.images[number] / 16).mean() < 0.06


def test_splits_share_no_picture(data):
    pictures = {
        split: {path.read_bytes() for path in (data / "digits-cls").glob(f"{split}/*/*.png")}
        for split in ("train", "val")
    }
    assert not pictures["train"] & pictures["val"]


def test_canvases_draw_from_their_own_split(tool, tmp_path, monkeypatch):
    """With full squares for the held-out digits, validation canvases hold squares alone."""
    split = tool.load_split()
    ids, ink, labels = split["val"]
    monkeypatch.setattr(
        tool, "load_split", lambda: {**split, "val": (ids, np.ones_like(ink), labels)}
    )
    tool.make_data_set(tmp_path, "det", seed=0)

    def filled(split):
        return [
            note["area"] == note["bbox"][2] * note["bbox"][3]
            for note in coco(tmp_path, split).loadAnns(coco(tmp_path, split).getAnnIds())
        ]

    assert all(filled("val")) and not any(filled("train"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_and_masks_agree(data, tool, split):
    index = coco(data, split)
    assert len(index.imgs) == tool.NUM_CANVASES[split]
    assert [c["name"] for c in index.loadCats(index.getCatIds())] == [*"0123456789"]
    for image in index.imgs.values():
        notes = index.imgToAnns[image["id"]]
        assert 3 <= len(notes) <= 6
        covered = np.zeros((128, 128), dtype=int)
        for note in notes:
            mask = index.annToMask(note)
            rows, columns = np.nonzero(mask)
            left, top, width, height = note["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
            assert note["area"] == mask.sum() > 0
            covered += mask
        assert covered.max() == 1


@pytest.mark.parametrize(("split", "name"), [("train", "training"), ("val", "validation")])
def test_segmentation_shows_the_same_canvases(data, split, name):
    index = coco(data, split)
    for image in index.imgs.values():
        file = image["file_name"]
        picture = data / "digits-seg" / "images" / name / file
        assert picture.read_bytes() == (data / "digits-det" / split / file).read_bytes()
        labels = cv2.imread(
            str(data / "digits-seg" / "annotations" / name / file), cv2.IMREAD_UNCHANGED
        )
        digits = np.zeros_like(labels)
        for note in index.imgToAnns[image["id"]]:
            digits[index.annToMask(note) > 0] = note["category_id"] + 1
        assert np.array_equal(labels[labels > 1], digits[labels > 1])
        assert np.array_equal(labels > 1, digits > 0)
        # the rim, left unlabelled, lies around the digits only
        near = cv2.dilate((digits > 0).astype(np.uint8), np.ones((13, 13)))
        assert (labels == 0).any() and near[labels == 0].all()


@pytest.mark.parametrize("task", ["cls", "det", "seg"])
def test_same_seed_same_bytes(data, tool, task, tmp_path):
    again = tool.make_data_set(tmp_path, task, seed=0)
    assert contents(again) == contents(data / f"digits-{task}")


def test_another_seed_draws_other_canvases(data, tool, tmp_path):
    other = contents(tool.make_data_set(tmp_path, "det", seed=1))
    first = contents(data / "digits-det")
    pictures = [name for name in first if name.endswith(".png")]
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in pictures)


def test_appears_complete_or_not_at_all(tool, tmp_path, monkeypatch):
    write, written = tool.write_png, []

    def interrupted(path, image):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)
        write(path, image)

    monkeypatch.setattr(tool, "write_png", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tool.make_data_set(tmp_path, "seg", seed=0)
    assert written and list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_cleared(data, tool, tmp_path):
    rest = tmp_path / ".digits-det.partial" / "train"
    rest.mkdir(parents=True)
    (rest / "999999.png").write_bytes(b"half a pict")
    folder = tool.make_data_set(tmp_path, "det", seed=0)
    assert list(tmp_path.iterdir()) == [folder]
    assert contents(folder) == contents(data / "digits-det")


def run(root, *arguments):
    command = [sys.executable, root / "tools" / "make_demo_data.py", *arguments]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


def test_complete_data_is_kept(root, data):
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    done = run(root, data)
    assert done.returncode == 0 and done.stdout.count("is complete, kept") == 3
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


def test_data_of_another_seed_is_refused(root, data):
    done = run(root, data, "--task", "det", "--seed", "7")
    assert done.returncode == 1
    assert "digits-det was written with seed 0, not 7" in done.stderr


def test_foreign_folder_is_refused(root, tmp_path):
    (tmp_path / "digits-cls").mkdir()
    done = run(root, tmp_path, "--task", "cls")
    assert done.returncode == 1 and "was not written by this tool" in done.stderr
    assert list((tmp_path / "digits-cls").iterdir()) == []


def test_file_instead_of_folder_is_refused(root, tmp_path):
    (tmp_path / "file").touch()
    done = run(root, tmp_path / "file")
    assert done.returncode == 1 and "DIR must be a folder" in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--task", "pose", "invalid choice: 'pose'"),
        ("--seed", "-1", "must not be negative, got -1"),
    ],
)
def test_bad_options(root, tmp_path, option, value, message):
    done = run(root, tmp_path / "new", option, value)
    assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / "new").exists()
