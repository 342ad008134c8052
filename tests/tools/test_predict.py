"""tools/predict.py against the models themselves, and the libraries' inferencers."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.apis import init_detector
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.apis import get_model
from mmseg.apis import init_model
from pycocotools import mask as coco_mask

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "predict.py"
CONFIGS = Path(__file__).parent / "configs"
BUILD = {"cls": get_model, "det": init_detector, "seg": init_model}
CLASSES = {"cls": ("a red", "a green", "a blue"), "det": ("r", "g", "b"), "seg": tuple("nrgb")}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Random weights, as a runner saves them with the names of the classes."""
    folder = tmp_path_factory.mktemp("weights")
    paths = {}
    for name, build in BUILD.items():
        torch.manual_seed(0)
        model = build(str(CONFIGS / f"{name}.py"), None, device="cpu")
        if name == "seg":
            torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=2)
        meta = dict(dataset_meta=dict(classes=CLASSES[name]), seed=0)
        paths[name] = folder / f"{name}.pth"
        torch.save(dict(meta=meta, state_dict=model.state_dict()), paths[name])
    return paths


def load(name, checkpoints):
    model = BUILD[name](str(CONFIGS / f"{name}.py"), None, device="cpu")
    model.load_state_dict(torch.load(checkpoints[name], weights_only=True)["state_dict"])
    return model.eval()


@pytest.fixture
def predict(run_here, checkpoints):
    def run(name, *arguments, status=0):
        got, _, errors = run_here(TOOL, CONFIGS / f"{name}.py", checkpoints[name], *arguments)
        if status:
            assert got == status or isinstance(got, str), errors
            return got
        assert got == 0, (got, errors)
        return json.loads(
            Path(arguments[arguments.index("-o") + 1], "predictions.json").read_text()
        )

    return run


def scores_of(model, image):
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    with torch.no_grad():
        return model(**model.data_preprocessor(dict(inputs=pixels))).softmax(-1)[0]


def test_folders_patterns_and_broken_images(predict, place, checkpoints, tmp_path):
    shutil.copytree(place / "data/cls/val", tmp_path / "photos")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    (tmp_path / "photos" / "empty.jpg").touch()
    (tmp_path / "photos" / "notes.txt").write_text("not taken")
    # another image of the same name
    cv2.imwrite(str(tmp_path / "red0.png"), np.full((32, 32, 3), 9, np.uint8))
    message = predict("cls", "photos", "photos/red/red0.png", "red*.png",
                      "photos/*/red0.png", "-o", "out", "--batch-size", "4", status=1)  # fmt: skip
    assert message.startswith("predict.py: error: 2 could not be read and were skipped: ")
    assert "photos/broken.png" in message and "photos/empty.jpg" in message
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {Path(item["path"]).name for item in found["broken"]} == {"broken.png", "empty.jpg"}
    assert found["classes"] == list(CLASSES["cls"])
    assert len(found["images"]) == 7  # each file once
    assert len({entry["picture"] for entry in found["images"]}) == 7
    model = load("cls", checkpoints)
    for entry in found["images"]:
        image = cv2.imread(entry["path"])
        expected = scores_of(model, image).sort(descending=True)
        assert entry["labels"] == expected.indices.tolist()
        assert entry["classes"][0] == CLASSES["cls"][entry["labels"][0]]
        assert entry["scores"] == pytest.approx(expected.values.tolist(), abs=1e-5)
        picture = cv2.imread(f"out/{entry['picture']}")
        assert picture.shape == image.shape and (picture != image).any()


def test_classifier_averages_views(predict, place, checkpoints):
    image = next((place / "data/cls/val").glob("*/*.png"))
    (entry,) = predict("cls", image, "-o", "out", "--tta", "--no-pictures")["images"]
    model, pixels = load("cls", checkpoints), cv2.imread(str(image))
    mirrored = np.ascontiguousarray(pixels[:, ::-1])
    expected = (scores_of(model, pixels) + scores_of(model, mirrored)) / 2
    assert entry["scores"] == pytest.approx(
        expected.sort(descending=True).values.tolist(), abs=1e-5
    )
    assert "picture" not in entry and not Path("out/pictures").exists()


def test_detector(predict, place, checkpoints):
    found = predict("det", place / "data/det/images", "-o", "out", "--batch-size", "3",
                    "--score-thr", "0.26")  # fmt: skip
    assert len(found["images"]) == 4
    model = load("det", checkpoints)
    total = 0
    for entry in found["images"]:
        pixels = cv2.imread(entry["path"])
        sample = dict(img=pixels, img_shape=pixels.shape[:2], ori_shape=pixels.shape[:2])
        init_default_scope("mmdet")
        steps = Config.fromfile(CONFIGS / "det.py").test_dataloader.dataset.pipeline
        packed = Compose([steps[1], steps[3]])({**sample, "img_id": 0, "img_path": "x"})
        data = dict(inputs=[packed["inputs"]], data_samples=[packed["data_samples"]])
        with torch.no_grad():
            expected = model.test_step(data)[0].pred_instances
        expected = expected[expected.scores > 0.26]
        assert len(entry["instances"]) == len(expected)
        for instance, box, score, label, mask in zip(
            entry["instances"], expected.bboxes, expected.scores, expected.labels, expected.masks
        ):
            assert instance["bbox"] == pytest.approx(box.tolist(), abs=1e-2)
            assert instance["score"] == pytest.approx(float(score), abs=1e-5)
            assert instance["class"] == CLASSES["det"][int(label)]
            np.testing.assert_array_equal(coco_mask.decode(instance["mask"]), mask.numpy())
            total += 1
        assert cv2.imread(f"out/{entry['picture']}").shape == pixels.shape
    assert total >= 4


def test_segmentor(predict, place, checkpoints):
    found = predict("seg", place / "data/seg/images", "-o", "out", "--batch-size", "2")
    model = load("seg", checkpoints)
    for entry in found["images"]:
        pixels = cv2.imread(entry["path"])
        data = model.data_preprocessor(
            dict(inputs=[torch.from_numpy(pixels).permute(2, 0, 1)]), False
        )
        with torch.no_grad():
            logits = model.encode_decode(data["inputs"], [dict(img_shape=pixels.shape[:2])])
        expected = logits[0].argmax(0).numpy()
        labels = cv2.imread(f"out/{entry['map']}", cv2.IMREAD_UNCHANGED)
        assert labels.shape == pixels.shape[:2]
        assert np.mean(labels == expected) > 0.999 and len(np.unique(expected)) > 1
        largest = entry["areas"][0]
        assert largest["share"] == pytest.approx(np.mean(labels == largest["label"]), abs=1e-6)
        assert largest["class"] == CLASSES["seg"][largest["label"]]
        assert (cv2.imread(f"out/{entry['picture']}") != pixels).any()
    views = predict("seg", place / "data/seg/images/scene0.png", "-o", "tta", "--tta")
    averaged = cv2.imread(f"tta/{views['images'][0]['map']}", -1)
    single = cv2.imread("out/maps/scene0.png", -1)
    assert averaged.shape == single.shape and (averaged != single).any()


def test_video(predict, place):
    writer = cv2.VideoWriter("film.avi", cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (56, 64))
    for image in sorted((place / "data/det/images").glob("*.png")):
        writer.write(cv2.imread(str(image)))
    writer.release()
    (video,) = predict("seg", "film.avi", "-o", "out", "--batch-size", "3")["videos"]
    assert len(video["frames"]) == 4 and video["fps"] == 5
    drawn = cv2.VideoCapture(f"out/{video['picture']}")
    frames = [drawn.read() for _ in range(5)]
    assert [good for good, _ in frames] == [True] * 4 + [False]
    assert frames[0][1].shape == (64, 56, 3)
    assert all(Path("out", frame["map"]).is_file() for frame in video["frames"])
    # a file that only looks like a video
    Path("no.mp4").write_bytes(b"no video")
    message = predict("seg", "no.mp4", "-o", "again", status=1)
    assert "no.mp4: it cannot be opened as a video" in message


def test_refusals(predict, run_here, checkpoints):
    assert "there is no image, video or folder 'x.png'" in predict(
        "cls", "x.png", "-o", "out", status=1
    )
    Path("void").mkdir()
    assert "no image or video in 'void'" in predict("cls", "void", "-o", "out", status=1)
    cv2.imwrite("a.png", np.zeros((32, 32, 3), np.uint8))
    wrong = predict("cls", "a.png", "-o", "out", "--device", "cuda:99", status=1)
    assert "--device 'cuda:99' cannot be used" in wrong
    lacking = torch.load(checkpoints["cls"], weights_only=True)
    del lacking["state_dict"]["head.fc.weight"]
    torch.save(lacking, "lacking.pth")
    status, _, _ = run_here(TOOL, CONFIGS / "cls.py", "lacking.pth", "a.png", "-o", "out")
    assert status == (
        "predict.py: error: the checkpoint does not fit the config: it lacks 1 parameters,"
        " head.fc.weight"
    )
    status, _, _ = run_here(TOOL, CONFIGS / "cls.py", "mmvssm://nothing", "a.png", "-o", "out")
    assert "nothing" in status
    assert not Path("out").exists()


@pytest.mark.parametrize("name", BUILD)
def test_inferencers_of_the_page(name, place, checkpoints, tmp_path, monkeypatch):
    """The two lines of docs/predicting.md, with a config and checkpoint of this test."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "predicting.md").read_text()
    kind = {"cls": "ImageClassification", "det": "Det", "seg": "MMSeg"}[name]
    (lines,) = re.findall(rf"from \S+ import {kind}Inferencer\n.*?(?=```)", page, re.DOTALL)
    # the inferencers look for LoadImageFromFile by this very name, as the demo's configs have it
    text = (CONFIGS / f"{name}.py").read_text()
    text = re.sub(r'"mm(cv|seg)\.(Load)', r'"\2', text)
    Path("config.py").write_text(text)
    shutil.copy(checkpoints[name], "checkpoint.pth")
    image = (
        place / "data" / ("cls/val/red/red0.png" if name == "cls" else f"{name}/images/scene0.png")
    )
    shutil.copy(image, tmp_path / "photo.png")
    values = {}
    exec(lines, values)
    result = values["result"]
    if name == "cls":
        expected = scores_of(load("cls", checkpoints), cv2.imread("photo.png"))
        assert result[0]["pred_label"] == int(expected.argmax())
        assert result[0]["pred_class"] == CLASSES["cls"][int(expected.argmax())]
    elif name == "det":
        assert len(result["predictions"][0]["bboxes"]) == 10
    else:
        assert np.shape(result["predictions"]) == (64, 56)
