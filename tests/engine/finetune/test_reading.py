"""A user's data are found in the usual places, and their defects are reported."""

import json
import re
import shutil
from pathlib import Path

import cv2
import pytest
from PIL import Image

from mmvssm.engine.finetune import DataError, Layout, read_data
from mmvssm.engine.finetune import data as reading


@pytest.fixture
def read(tmp_path):
    """Reads a folder for a library."""
    return lambda library, folder, **layout: read_data(
        library, folder, tmp_path / "lists", Layout(**layout)
    )


@pytest.fixture
def refusal(tmp_path):
    """Return the message with which data are refused."""

    def of(library, folder, **layout):
        with pytest.raises(DataError) as error:
            read_data(library, folder, tmp_path / "lists", Layout(**layout))
        assert "\n" not in str(error.value)
        return str(error.value)

    return of


def lines(split):
    return Path(split.ann_file).read_text().splitlines()


def content(split):
    return json.loads(Path(split.ann_file).read_text())


class TestClassification:
    @pytest.fixture
    def read(self, read, photos):
        return lambda **layout: read("mmpretrain", photos, **layout)

    @pytest.fixture
    def refusal(self, refusal, photos):
        return lambda **layout: refusal("mmpretrain", photos, **layout)

    def test_labels_are_those_of_the_training_classes(self, read):
        data = read()
        assert data.classes == ("cat", "dog", "owl")
        assert lines(data.train) == [
            *("cat/cat 0.jpg 0", "cat/cat 1.jpg 0"),
            *("dog/dog 0.jpg 1", "dog/dog 1.jpg 1", "dog/dog 2.jpg 1", "owl/owl 0.jpg 2"),
        ]
        # the validation folder lacks the first class
        assert lines(data.val) == ["dog/dog 0.jpg 1", "owl/owl 0.jpg 2"]
        assert (data.train.count, data.val.count, data.notes) == (6, 2, ())

    def test_a_part_of_each_class_is_held_out(self, read, photos):
        shutil.rmtree(photos / "val")
        data = read()
        train, val = lines(data.train), lines(data.val)
        assert len(train) == 4 and len(val) == 2 and not set(train) & set(val)
        # the only owl is trained on
        assert sorted(line[-1] for line in val) == ["0", "1"] and "owl/owl 0.jpg 2" in train
        assert "2 of 6 images" in data.notes[0] and "seed 0" in data.notes[0]
        assert lines(read().val) == val

    def test_folders_of_classes_need_no_train_above(self, read, photos):
        shutil.rmtree(photos / "val")
        for folder in (photos / "train").iterdir():
            folder.rename(photos / folder.name)
        (photos / "train").rmdir()
        assert read().classes == ("cat", "dog", "owl")

    def test_other_names_and_deeper_folders(self, read, photos, image):
        (photos / "val").rename(photos / "test")
        (photos / "train").rename(photos / "learn")
        image(photos / "learn" / "cat" / "more" / "deep.PNG")
        image(photos / "learn" / "cat" / ".hidden.jpg")
        image(photos / "learn" / "loose.jpg")
        data = read(train_images="learn", val_images="test")
        assert "cat/more/deep.PNG 0" in lines(data.train) and data.train.count == 7
        assert "1 images directly in" in data.notes[0] and "loose.jpg" in data.notes[0]

    def test_only_a_sample_of_many_is_opened(self, read, photos, monkeypatch):
        monkeypatch.setattr(reading, "SAMPLE", 3)
        monkeypatch.setattr("mmvssm.engine.finetune.classification.SAMPLE", 3)
        (photos / "train" / "cat" / "cat 1.jpg").write_text("no image")
        data = read()  # images 0, 2 and 4 of 0 to 5 are opened
        assert "3 of 6 images" in data.notes[0]

    def test_missing_folder(self, photos, refusal, tmp_path):
        with pytest.raises(DataError, match=r"there is no data folder '.*absent'"):
            read_data("mmpretrain", photos / "absent", tmp_path)
        assert "there is no folder" in refusal(train_images="absent")

    def test_training_folder_missing_beside_validation(self, refusal, photos):
        (photos / "train").rename(photos / "other")
        assert "photos/train' beside" in refusal() and "--train-images" in refusal()

    def test_empty_class(self, refusal, photos):
        (photos / "train" / "bee").mkdir()
        assert "train/bee' holds no images" in refusal()

    def test_strange_class(self, refusal, photos, image):
        image(photos / "val" / "emu" / "1.jpg")
        message = refusal()
        assert "class 'emu' in" in message and "(cat, dog, owl)" in message

    def test_single_class(self, refusal, photos):
        for name in ("cat", "dog"):
            shutil.rmtree(photos / "train" / name)
        assert "only one class, 'owl'" in refusal()

    @pytest.mark.parametrize("content", [b"", b"text", "half"], ids=["empty", "text", "truncated"])
    def test_broken_image(self, refusal, photos, content):
        path = photos / "val" / "owl" / "owl 0.jpg"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
        message = refusal()
        assert (
            f"{str(path)!r} cannot be read as an image" in message
            and "repair or remove it" in message
        )

    def test_annotations_are_no_matter_of_folders(self, refusal):
        assert "train_annotations must not be given" in refusal(train_annotations="a.json")

    def test_only_maps_have_a_zero(self, refusal):
        assert "--reduce-zero-label needs a recipe of mmseg" in refusal(reduce_zero_label=True)


class TestDetection:
    @pytest.fixture
    def read(self, read, boxes):
        return lambda **layout: read("mmdet", boxes, **layout)

    @pytest.fixture
    def refusal(self, refusal, boxes):
        return lambda **layout: refusal("mmdet", boxes, **layout)

    def test_files_are_used_as_they_are(self, read, boxes):
        data = read()
        assert data.classes == ("cat", "dog") and data.masks and data.notes == ()
        assert data.train.ann_file == str(boxes / "annotations" / "instances_train.json")
        assert (data.train.images, data.train.count) == (str(boxes / "train"), 5)
        assert (data.val.images, data.val.count) == (str(boxes / "val"), 2)

    def test_file_beside_its_images(self, read, boxes):
        for split, name in (("train", "train"), ("val", "valid")):
            (boxes / split).rename(boxes / name)
            path = boxes / "annotations" / f"instances_{split}.json"
            path.rename(boxes / name / "_annotations.coco.json")
        data = read()
        assert data.val.images == str(boxes / "valid")
        assert data.val.ann_file == str(boxes / "valid" / "_annotations.coco.json")

    def test_a_part_is_held_out(self, read, boxes):
        (boxes / "annotations" / "instances_val.json").unlink()
        data = read()
        train, val = (content(split) for split in (data.train, data.val))
        assert (len(train["images"]), len(val["images"])) == (4, 1)
        ids = [{image["id"] for image in part["images"]} for part in (train, val)]
        assert ids[0] | ids[1] == set(range(5))
        for part, images in zip((train, val), ids):
            assert {annotation["image_id"] for annotation in part["annotations"]} == images
        assert "1 of 5 images" in data.notes[0]

    def test_other_places(self, read, boxes):
        (boxes / "annotations" / "instances_train.json").rename(boxes / "labelled.json")
        (boxes / "train").rename(boxes / "pictures")
        data = read(train_annotations="labelled.json", train_images="pictures")
        assert data.train.images == str(boxes / "pictures")

    def test_validation_gets_the_categories_of_training(self, read, change):
        """Labels are positions in the list: another order would silently exchange the classes."""

        def turn(coco):
            coco["categories"] = [dict(id=1, name="dog"), dict(id=2, name="cat")]
            for part in coco["annotations"]:
                part["category_id"] = {7: 1, 3: 2}[part["category_id"]]

        change(turn, "val")
        data = read()
        written = content(data.val)
        assert "is read with the categories of" in data.notes[0]
        assert written["categories"] == [dict(id=3, name="cat"), dict(id=7, name="dog")]
        assert [part["category_id"] for part in written["annotations"]] == [3, 7, 3, 7]

    def test_what_evaluation_needs_is_completed(self, read, change):
        def strip(coco):
            for part in coco["annotations"]:
                del part["iscrowd"], part["area"]

        change(strip, "val")
        data = read()
        (part, *_) = content(data.val)["annotations"]
        assert (part["iscrowd"], part["area"]) == (0, 200)

    def test_boxes_without_masks(self, read, change):
        def strip(coco):
            for part in coco["annotations"]:
                del part["segmentation"]

        change(strip)
        data = read()
        assert not data.masks and "only boxes are trained" in data.notes[-1]

    def test_small_boxes_and_unused_categories_are_noted(self, read, change):
        def alter(coco):
            coco["annotations"][0]["bbox"] = [3, 3, 0.5, 9]
            coco["categories"].append(dict(id=9, name="emu"))

        change(alter)
        notes = " ".join(read().notes)
        assert "1 boxes of" in notes and "smaller than a pixel" in notes
        assert "has no boxes of emu" in notes

    @pytest.mark.parametrize(
        ("alter", "message"),
        [
            (lambda c: c.pop("categories"), "has no categories: a COCO file holds"),
            (lambda c: c["annotations"].clear(), "has no annotations"),
            (lambda c: c["annotations"][2].update(category_id=4), "has the category_id 4, but the"),
            (
                lambda c: c["annotations"][2].update(image_id=44),
                "has the image_id 44, which is not listed",
            ),
            (lambda c: c["annotations"][2].update(id=0), "2 annotations of "),
            (
                lambda c: c["annotations"][2].update(bbox=[10, 10, 31, 33]),
                "beyond its image '1.jpg'",
            ),
            (
                lambda c: c["annotations"][2].update(bbox=[1, 2, 3]),
                "a box is [x, y, width, height]",
            ),
            (lambda c: c["annotations"][2].update(bbox=[9, 9, -3, 5]), "has the box [9, 9, -3, 5]"),
            (lambda c: c["annotations"][2].pop("bbox"), "annotation 10 of"),
            (lambda c: c["annotations"][2].pop("segmentation"), "has no segmentation but others"),
            (lambda c: c["images"][1].update(file_name="9.jpg"), "there is no image"),
            (lambda c: c["images"][1].update(width=41), "has 40 x 32 pixels, but"),
            (lambda c: c["categories"][1].update(name="cat"), "2 categories of"),
            (
                lambda c: [part.update(bbox=[0.1, 0.1, 0.3, 0.4]) for part in c["annotations"]],
                "smaller than a pixel: boxes are",
            ),
        ],
    )
    def test_wrong_file(self, refusal, change, alter, message):
        change(alter)
        sentence = refusal()
        assert message in sentence and re.search(r"instances_train\.json|train/", sentence)

    def test_strange_category(self, refusal, change):
        change(lambda coco: coco["categories"].append(dict(id=9, name="emu")), "val")
        assert "category 'emu' of " in refusal() and "(cat, dog)" in refusal()

    def test_no_json(self, refusal, boxes):
        (boxes / "annotations" / "instances_val.json").write_text("{")
        assert "instances_val.json' cannot be read as JSON" in refusal()

    def test_missing_file_and_images(self, refusal, boxes):
        assert "no annotation file" in refusal(train_annotations="absent.json")
        shutil.rmtree(boxes / "val")
        message = refusal()
        assert "the image '0.jpg' of " in message and "instances_val.json' is in none" in message
        assert "--val-images" in message

    def test_broken_image(self, refusal, boxes):
        (boxes / "train" / "3.jpg").write_bytes(b"")
        assert "train/3.jpg' cannot be read as an image" in refusal()


class TestSegmentation:
    @pytest.fixture
    def read(self, read, maps):
        return lambda **layout: read("mmseg", maps, **layout)

    @pytest.fixture
    def refusal(self, refusal, maps):
        return lambda **layout: refusal("mmseg", maps, **layout)

    def test_each_value_is_a_class(self, read, maps):
        data = read()
        assert data.classes == ("0", "1", "2") and not data.reduce_zero_label
        assert lines(data.train) == list("01234") and data.train.suffixes == (".jpg", ".png")
        assert data.val.maps == str(maps / "annotations" / "validation")
        assert "255 is ignored; 0 is the first class, '0'" in data.notes[-1]

    def test_zero_may_be_no_class(self, read):
        data = read(reduce_zero_label=True)
        assert data.classes == ("1", "2") and data.reduce_zero_label
        assert "0 is ignored, too, and 1 is the first class, '1'" in data.notes[-1]

    def test_names_from_a_file(self, read, maps):
        (maps / "classes.txt").write_text("none\nroad\nsky\nsea\n")
        data = read()
        assert data.classes == ("none", "road", "sky", "sea")
        assert "shows sea" in data.notes[0]

    def test_a_part_is_held_out(self, read, maps):
        for kind in ("images", "annotations"):
            shutil.rmtree(maps / kind / "validation")
        data = read()
        assert (data.train.count, data.val.count) == (4, 1)
        assert set(lines(data.train)) | set(lines(data.val)) == set("01234")

    def test_other_folders(self, read, maps):
        (maps / "images").rename(maps / "pictures")
        (maps / "annotations").rename(maps / "truth")
        data = read(
            train_images="pictures/training", train_annotations="truth/training",
            val_images="pictures/validation", val_annotations="truth/validation",
        )  # fmt: skip
        assert data.train.images == str(maps / "pictures" / "training")

    def test_image_turned_by_its_camera(self, read, maps):
        """Training rotates it as its EXIF orientation says, and its map must match."""
        path = maps / "images" / "training" / "0.jpg"
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (32, 40)).save(path, exif=exif)
        assert cv2.imread(str(path)).shape == (32, 40, 3)
        assert read().train.count == 5

    def test_values_beyond_the_names(self, refusal, maps):
        (maps / "classes.txt").write_text("road\nsky\n")
        message = refusal()
        assert "training/0.png' holds the value 2, but the 2 classes have the values 0 to 1" in (
            message
        )
        assert "--reduce-zero-label" in message

    def test_values_with_gaps(self, refusal, maps, label_map):
        label_map(maps / "annotations" / "training" / "3.png", 0, 50)
        assert "the values 0, 1, 2, 50, which are not" in refusal()
        assert "classes.txt" in refusal()

    def test_new_value_in_validation(self, refusal, maps, label_map):
        label_map(maps / "annotations" / "validation" / "1.png", 0, 3)
        assert "validation/1.png' holds the value 3" in refusal()

    def test_binary_masks(self, refusal, maps, label_map):
        for path in (maps / "annotations").glob("*/*.png"):
            label_map(path, 0, 255)
        assert "holds only one class (255 is ignored)" in refusal()

    def test_other_size(self, refusal, maps, image):
        image(maps / "images" / "training" / "2.jpg", height=33)
        assert "training/2.png' has 40 x 32 pixels, but its image 40 x 33" in refusal()

    def test_colour_map(self, refusal, maps, image):
        image(maps / "annotations" / "training" / "2.png")
        assert "training/2.png' is a colour image" in refusal()

    def test_missing_map(self, refusal, maps):
        (maps / "annotations" / "training" / "2.png").unlink()
        assert "training/2.jpg' has no label map" in refusal()

    def test_mixed_endings(self, refusal, maps, image):
        (maps / "images" / "training" / "2.jpg").unlink()
        image(maps / "images" / "training" / "2.png")
        assert "images/training' end in .jpg and .png" in refusal()

    def test_half_of_the_folders(self, refusal, maps):
        assert "--train-images and --train-annotations must be given together" in refusal(
            train_images="images"
        )
        shutil.rmtree(maps / "annotations" / "validation")
        assert "no folder of label maps for" in refusal()

    def test_broken_map(self, refusal, maps):
        path = maps / "annotations" / "training" / "2.png"
        path.write_bytes(path.read_bytes()[:60])
        assert "training/2.png' cannot be read as an image" in refusal()

    def test_too_many_maps_to_find_classes_in(self, refusal, read, maps, monkeypatch):
        for module in ("data", "segmentation"):
            monkeypatch.setattr(f"mmvssm.engine.finetune.{module}.SAMPLE", 3)
        assert "5 label maps are too many" in refusal()
        (maps / "classes.txt").write_text("none\nroad\nsky\n")
        assert "3 of 5 images and maps" in read().notes[-1]

    def test_palette_is_an_index(self, read, maps):
        path = maps / "annotations" / "training" / "2.png"
        picture = Image.new("P", (40, 32), 2)
        picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        picture.save(path)
        assert read().classes == ("0", "1", "2")


def test_library_is_one_of_three(tmp_path):
    with pytest.raises(ValueError, match="must be one of mmpretrain, mmdet, mmseg, got 'mmpose'"):
        read_data("mmpose", tmp_path, tmp_path)
