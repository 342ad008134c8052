"""tools/test.py: predictions, metrics, pictures, test-time augmentation."""

import json
import pickle
import re

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.apis import init_detector
from mmdet.structures import DetDataSample
from mmpretrain.apis import get_model
from mmseg.apis import init_model
from mmseg.engine.hooks import SegVisualizationHook
from pycocotools import mask as coco_mask
from torchvision.ops import batched_nms


@pytest.fixture(autouse=True)
def _in_place(place, monkeypatch):
    """Paths are relative to the folder of the data."""
    monkeypatch.chdir(place)


def image_tensor(path):
    return torch.from_numpy(cv2.imread(str(path))).permute(2, 0, 1)


def read_pickle(path):
    return pickle.loads(path.read_bytes())


def test_classification_predictions_and_pictures(tools, place, cls_checkpoint):
    output = tools.run(
        "test.py", "cls.py", cls_checkpoint, "--out", "cls.pkl", "--show-dir", "show/cls"
    )
    results = read_pickle(place / "cls.pkl")
    hits = [int(sample["pred_label"]) == int(sample["gt_label"]) for sample in results]
    assert len(hits) == 6
    assert float(re.findall(r"accuracy/top1: ([\d.]+)", output)[-1]) == pytest.approx(
        100 * np.mean(hits), abs=1e-3
    )
    assert len(list((place / "show/cls").glob("*.png"))) == 6


def test_classification_tta_averages_image_and_mirror_image(tools, place, cls_checkpoint):
    (place / "cls_wrapped.py").write_text(
        "_base_ = 'cls.py'\n"
        "inner = dict(type='RepeatDataset', times=1, dataset=_base_.test_dataloader.dataset)\n"
        "test_dataloader = dict(dataset=dict(_delete_=True, **inner))\n"
    )
    tools.run("test.py", "cls_wrapped.py", cls_checkpoint, "--tta", "--out", "cls_tta.pkl")
    model = get_model("cls.py", pretrained=cls_checkpoint).eval()
    for sample in read_pickle(place / "cls_tta.pkl"):
        image = image_tensor(sample["img_path"])
        views = torch.stack([image, image.flip(-1)])
        with torch.no_grad():
            scores = model(**model.data_preprocessor(dict(inputs=views))).softmax(-1)
        assert not torch.allclose(scores[0], scores[1], atol=1e-5)
        torch.testing.assert_close(sample["pred_score"], scores.mean(0), rtol=0, atol=1e-5)


def test_amp_rounds_scores_to_bfloat16(tools, place, cls_checkpoint):
    tools.run("test.py", "cls.py", cls_checkpoint, "--amp", "--out", "cls_amp.pkl")
    model = get_model("cls.py", pretrained=cls_checkpoint).eval()
    for sample in read_pickle(place / "cls_amp.pkl"):
        image = image_tensor(sample["img_path"])[None]
        with torch.no_grad():
            score = model(**model.data_preprocessor(dict(inputs=image))).softmax(-1)[0]
        assert not torch.equal(sample["pred_score"].float(), score)
        torch.testing.assert_close(sample["pred_score"].float(), score, rtol=0, atol=0.02)


def test_detection_tta_merges_boxes_and_masks_of_the_mirror_image(tools, place, det_checkpoint):
    tools.run("test.py", "det.py", det_checkpoint, "--tta", "--out", "det.pkl",
              "--show-dir", "show/det")  # fmt: skip
    assert len(list((place / "show/det").glob("scene?.png"))) == 4
    model = init_detector("det.py", det_checkpoint, device="cpu")
    for result in read_pickle(place / "det.pkl"):
        image = image_tensor(result["img_path"])
        height, width = image.shape[1:]
        meta = dict(ori_shape=(height, width), img_shape=(height, width), scale_factor=(1.0, 1.0))
        views = []
        for view in (image, image.flip(-1)):
            data = dict(inputs=[view], data_samples=[DetDataSample(metainfo=meta)])
            with torch.no_grad():
                views.append(model.test_step(data)[0].pred_instances)
        views[1].bboxes = torch.stack(
            [width - views[1].bboxes[:, 2], views[1].bboxes[:, 1],
             width - views[1].bboxes[:, 0], views[1].bboxes[:, 3]], dim=1
        )  # fmt: skip
        views[1].masks = views[1].masks.flip(-1)
        found = views[0].cat(views)
        kept = batched_nms(found.bboxes, found.scores, found.labels, 0.5)[:100]
        assert {int(index) // len(views[0]) for index in kept} == {0, 1}, "a view lost all"

        merged = result["pred_instances"]
        torch.testing.assert_close(merged["scores"], found.scores[kept], rtol=0, atol=1e-4)
        torch.testing.assert_close(merged["bboxes"], found.bboxes[kept], rtol=0, atol=1e-2)
        masks = torch.from_numpy(coco_mask.decode(merged["masks"])).permute(2, 0, 1).bool()
        assert (masks == found.masks[kept]).float().mean() > 0.999


def test_position_tables_of_another_size_are_resized(tools, place):
    """A classifier is tested on images of a size other than it was trained for."""
    text = (
        "_base_ = 'cls.py'\n"
        "model = dict(backbone=dict(_delete_=True, type='mmvssm.Vim', img_size={size},\n"
        "    arch=dict(embed_dims={width}, num_layers=2, patch_size=8)),\n"
        "    neck=None, head=dict(in_channels={width}))\n"
    )
    for name, size, width in (("small", 32, 16), ("large", 48, 16), ("wide", 48, 24)):
        (place / f"vim_{name}.py").write_text(text.format(size=size, width=width))
    weights = get_model("vim_small.py").state_dict()
    torch.nn.init.normal_(weights["backbone.pos_embed"])
    torch.save(dict(state_dict=weights), place / "vim_small.pth")
    tools.run("test.py", "vim_large.py", "vim_small.pth", "--out", "vim_large.pkl")
    table = weights["backbone.pos_embed"][0]
    rows = torch.cat([table[:8], table[9:]]).T.reshape(1, 16, 4, 4)
    rows = F.interpolate(rows, (6, 6), mode="bicubic").flatten(2)[0].T
    weights["backbone.pos_embed"] = torch.cat([rows[:18], table[8:9], rows[18:]])[None]
    model = get_model("vim_large.py").eval()
    model.load_state_dict(weights)
    for sample in read_pickle(place / "vim_large.pkl"):
        image = image_tensor(sample["img_path"])[None]
        with torch.no_grad():
            score = model(**model.data_preprocessor(dict(inputs=image))).softmax(-1)[0]
        torch.testing.assert_close(sample["pred_score"], score, rtol=0, atol=1e-5)

    output = tools.run("test.py", "vim_wide.py", "vim_small.pth", status=1)
    expected = r"error: the checkpoint does not fit the config: 26 parameters are missing or have"
    assert re.search(expected, output), output
    assert "Traceback" not in output


@pytest.fixture(scope="module")
def seg_contrast(place, tools, seg_checkpoint):
    """The trained segmentor with all classes about equally likely, so that views disagree."""
    checkpoint = tools.load(seg_checkpoint)
    checkpoint["state_dict"]["decode_head.conv_seg.weight"] *= 100
    checkpoint["state_dict"]["decode_head.conv_seg.bias"] *= 0
    torch.save(checkpoint, place / "seg_contrast.pth")
    return "seg_contrast.pth"


def class_probabilities(model, image, ratio, flip):
    """Return the probabilities (C, H, W) of ``image`` from one scaled, possibly mirrored view."""
    height, width = image.shape[:2]
    view = cv2.resize(image, (int(width * ratio + 0.5), int(height * ratio + 0.5)))
    view = torch.from_numpy(view).permute(2, 0, 1)[None].float().flip(1)
    view = view.flip(-1) if flip else view
    mean, std = (torch.tensor(model.cfg.model.data_preprocessor[key]) for key in ("mean", "std"))
    view = (view - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        logits = model.encode_decode(view, [dict(img_shape=view.shape[2:])])
    logits = logits.flip(-1) if flip else logits
    logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
    return logits[0].softmax(0)


def mean_iou(labels, predictions, classes=4):
    pairs = np.bincount(labels.ravel() * classes + predictions.ravel(), minlength=classes**2)
    pairs = pairs.reshape(classes, classes)
    hits = np.diag(pairs)
    return 100 * np.mean(hits / (pairs.sum(0) + pairs.sum(1) - hits))


def test_segmentation_tta_averages_scales_and_flips(tools, place, seg_contrast, free_port):
    output = tools.run("test.py", "seg.py", seg_contrast, "--tta", "--out", "tta")
    shared = tools.run(
        "dist_test.sh", "seg.py", seg_contrast, 2, "--tta", "--out", "dist_tta", PORT=free_port
    )
    model = init_model("seg.py", seg_contrast, device="cpu")
    labels, predictions, agreements = [], [], []
    for path in sorted((place / "data/seg/images").glob("*.png")):
        image = cv2.imread(str(path))
        views = [
            class_probabilities(model, image, ratio, flip)
            for ratio in (0.5, 1.0, 1.75)
            for flip in (False, True)
        ]
        expected = torch.stack(views).mean(0).argmax(0).numpy()
        predictions.append(cv2.imread(str(place / "tta" / path.name), cv2.IMREAD_UNCHANGED))
        labels.append(cv2.imread(str(place / "data/seg/labels" / path.name), -1))
        assert np.mean(predictions[-1] == expected) > 0.999
        agreements.append([np.mean(predictions[-1] == view.argmax(0).numpy()) for view in views])
        other = cv2.imread(str(place / "dist_tta" / path.name), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(other, predictions[-1])
    assert (np.min(agreements, axis=0) < 0.999).all()  # no view alone explains the predictions

    expected = mean_iou(np.stack(labels).astype(int), np.stack(predictions).astype(int))
    for text in (output, shared):
        (reported,) = re.findall(r" mIoU: ([\d.]+)", text)
        assert float(reported) == pytest.approx(expected, abs=0.02)


def test_segmentation_metrics_and_pictures(tools, place, seg_checkpoint):
    output = tools.run(
        "test.py", "seg.py", seg_checkpoint, "--out", "seg/metrics.json", "--out-item", "metrics",
        "--show-dir", "show/seg", "--interval", 2,
    )  # fmt: skip
    metrics = json.loads((place / "seg/metrics.json").read_text())
    assert f"mIoU: {metrics['mIoU']:.4f}" in output
    assert [path.name for path in (place / "seg").iterdir()] == ["metrics.json"]
    drawn = len(list((place / "show/seg").rglob("*scene*.png")))
    # onedl-mmsegmentation has another hook, which draws every test image
    assert drawn == (2 if "_after_iter" in vars(SegVisualizationHook) else 4)
