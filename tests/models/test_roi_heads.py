"""The cascade with one mask head, from the published config made thin."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.models.roi_heads import CascadeRoIHead
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

CONFIG = "configs/vim/cascade-mask-rcnn_vim-tiny_fpn_lsj-184k_coco.py"
CHANNELS, CLASSES, SIDE = 4, 3, 64
META = dict(img_shape=(SIDE, SIDE), ori_shape=(SIDE, SIDE), scale_factor=(1.0, 1.0))


def build(**changes):
    init_default_scope("mmdet")
    model = Config.fromfile(Path(__file__).parents[2] / CONFIG).model
    config, thin = model.roi_head, dict(in_channels=CHANNELS, conv_out_channels=CHANNELS)
    config.bbox_roi_extractor.out_channels = config.mask_roi_extractor.out_channels = CHANNELS
    config.mask_head.update(thin, num_classes=CLASSES)
    for head in config.bbox_head:
        head.update(thin, num_classes=CLASSES, fc_out_channels=8, **changes)
    head = MODELS.build(dict(config, train_cfg=model.train_cfg.rcnn, test_cfg=model.test_cfg.rcnn))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def boxes_of(count):
    corners = torch.rand(count, 2) * SIDE / 2
    return torch.cat([corners, corners + 4 + torch.rand(count, 2) * SIDE / 2], dim=1)


@pytest.fixture
def head():
    return build()


@pytest.fixture
def maps():
    """Return maps of four levels for two images."""
    return tuple(torch.randn(2, CHANNELS, SIDE // s, SIDE // s) for s in (4, 8, 16, 32))


@pytest.fixture
def proposals():
    return [InstanceData(bboxes=boxes_of(6)), InstanceData(bboxes=boxes_of(5))]


@pytest.fixture
def samples():
    """Return images with a few objects, whose masks are the upper halves of their boxes."""
    samples = []
    for _ in range(2):
        boxes, labels = boxes_of(3), torch.randint(CLASSES, (3,))
        masks = np.zeros((3, SIDE, SIDE), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
            mask[y1 : (y1 + y2) // 2, x1:x2] = 1
        sample = DetDataSample(metainfo=META)
        masks = BitmapMasks(masks, SIDE, SIDE)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, masks=masks)
        samples.append(sample)
    return samples


def test_scores_are_means_of_probabilities(head, maps, proposals):
    """Each stage gets the boxes refined by the stage before, clipped to the image."""
    expected = []
    for i, found in enumerate(proposals):
        boxes, scores = found.bboxes, []
        for extractor, stage in zip(head.bbox_roi_extractor, head.bbox_head):
            rois = torch.cat([torch.full((len(boxes), 1), float(i)), boxes], dim=1)
            logits, deltas = stage(extractor(maps, rois))
            scores.append(logits.softmax(-1))
            boxes = stage.bbox_coder.decode(boxes, deltas, max_shape=META["img_shape"])
        expected.append((torch.stack(scores).mean(0), boxes))
    with torch.no_grad():
        results = head.predict_bbox(maps, [META] * 2, proposals, rcnn_test_cfg=None)
    for result, (scores, boxes) in zip(results, expected, strict=True):
        torch.testing.assert_close(result.scores, scores)
        torch.testing.assert_close(result.bboxes, boxes)


def test_one_mask_head_is_given_the_final_boxes(head, maps, proposals):
    head.test_cfg.update(score_thr=0.0, max_per_img=4)
    samples = [DetDataSample(metainfo=META)] * 2
    with torch.no_grad():
        results = head.predict(maps, proposals, samples)
        for i, result in enumerate(results):
            assert result.masks.shape == (4, SIDE, SIDE) and result.masks.any()
            rois = torch.cat([torch.full((4, 1), float(i)), result.bboxes], dim=1)
            logits = head.mask_head(head.mask_roi_extractor(maps, rois))
            (again,) = head.mask_head.predict_by_feat(
                (logits,), [result.clone()], [META], head.test_cfg
            )
            assert torch.equal(result.masks, again.masks)
        scores, deltas, masks = head(maps, proposals, samples)
    assert [tuple(value.shape) for value in (*scores, *deltas, *masks)] == [
        *[(6, CLASSES + 1), (5, CLASSES + 1), (6, 4), (5, 4)],
        *[(6, CLASSES, 28, 28), (5, CLASSES, 28, 28)],
    ]


def test_samples_and_losses(head, maps, proposals, samples, monkeypatch):
    """The first stage also samples the objects' own boxes; the others get all that it returns."""
    counts, bbox_loss = [], head.bbox_loss

    def count(stage, x, sampling_results):
        counts.append([len(result.priors) for result in sampling_results])
        return bbox_loss(stage, x, sampling_results)

    monkeypatch.setattr(head, "bbox_loss", count)
    losses = head.loss(maps, proposals, samples)
    assert counts == [[6 + 3, 5 + 3], [6, 5], [6, 5]]
    assert {name for name in losses if "mask" in name} == {"s0.loss_mask"}
    assert {f"s{i}.loss_{name}" for i in range(3) for name in ("cls", "bbox")} < losses.keys()
    total = sum(value for name, value in losses.items() if "loss" in name)
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_maps_learn_a_third_of_each_stage(head, maps, proposals, samples):
    """The heads get the full gradient; mmdetection's maps would, too."""
    gradients = []
    for kind in (type(head), CascadeRoIHead):
        torch.manual_seed(0)
        inputs = [level.clone().requires_grad_() for level in maps]
        samplings = []
        for found, sample in zip(proposals, samples):
            priors = InstanceData(priors=found.bboxes)
            assigned = head.bbox_assigner[0].assign(priors, sample.gt_instances)
            samplings.append(head.bbox_sampler[0].sample(assigned, priors, sample.gt_instances))
        losses = kind.bbox_loss(head, 1, tuple(inputs), samplings)["loss_bbox"]
        wanted = [*inputs, *head.bbox_head[1].parameters()]
        gradients.append(
            torch.autograd.grad(losses["loss_cls"] + losses["loss_bbox"], wanted, allow_unused=True)
        )
    ours, theirs = gradients
    assert theirs[0].abs().max() > 0
    for i, (one, other) in enumerate(zip(ours, theirs)):
        if other is not None:
            torch.testing.assert_close(one, other / 3 if i < len(maps) else other)


def test_boxes_are_not_refined_class_by_class():
    with pytest.raises(ValueError, match="reg_class_agnostic=True in every stage"):
        build(reg_class_agnostic=False)
