"""Vim's detectors as Detectron2 saves them: equal heads under its names and under ours."""

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmvssm.checkpoint import KeyMap, convert, read_checkpoint, to_original

CONFIGS = Path(__file__).parents[2] / "configs" / "vim"
CHANNELS, FC, CLASSES, ANCHORS = 8, 16, 5, 3
#: Detectors, and by what Detectron2 divides the deltas of each stage's boxes.
CASCADE, SINGLE = (
    f"{name}_vim-tiny_fpn_lsj-184k_coco" for name in ("cascade-mask-rcnn", "mask-rcnn")
)
WEIGHTS = {CASCADE: [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)], SINGLE: [(10, 10, 5, 5)]}
DETECTORS = pytest.mark.parametrize("case", WEIGHTS, indirect=True)
THE_CASCADE = pytest.mark.parametrize("case", [CASCADE], indirect=True)


# What Detectron2 computes, in modules whose state dicts have its names


class ChannelNorm(nn.Module):
    """Norm over the channels of each pixel."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.randn(CHANNELS)) for _ in range(2))

    def forward(self, x):
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        x = (x - mean) / (variance + 1e-6).sqrt()
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class Conv(nn.Conv2d):
    """3x3 convolution, with a norm if it has no bias, and ReLU."""

    def __init__(self, bias=False):
        super().__init__(CHANNELS, CHANNELS, 3, padding=1, bias=bias)
        self.norm = nn.Identity() if bias else ChannelNorm()

    def forward(self, x):
        return self.norm(super().forward(x)).relu()


def named(**modules):
    return nn.ModuleDict(modules)


class Heads(nn.Module):
    """RPN, box heads and mask head; a single box head predicts deltas for every class."""

    def __init__(self, name):
        super().__init__()
        self.is_cascade = name == CASCADE
        rpn_head = named(
            conv=nn.Sequential(),
            objectness_logits=nn.Conv2d(CHANNELS, ANCHORS, 1),
            anchor_deltas=nn.Conv2d(CHANNELS, 4 * ANCHORS, 1),
        )
        for i in range(2):
            rpn_head["conv"].add_module(f"conv{i}", Conv(bias=True))
        self.proposal_generator = named(rpn_head=rpn_head)

        def box_head():
            convs = {f"conv{i}": Conv() for i in range(1, 5)}
            return named(**convs, fc1=nn.Linear(CHANNELS * 7 * 7, FC))

        def predictor():
            count = 4 if self.is_cascade else 4 * CLASSES
            return named(cls_score=nn.Linear(FC, CLASSES + 1), bbox_pred=nn.Linear(FC, count))

        stages = range(len(WEIGHTS[name]))
        self.roi_heads = named(
            box_head=nn.ModuleList(box_head() for _ in stages) if self.is_cascade else box_head(),
            box_predictor=nn.ModuleList(predictor() for _ in stages)
            if self.is_cascade
            else predictor(),
            mask_head=named(
                **{f"mask_fcn{i}": Conv() for i in range(1, 5)},
                deconv=nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, stride=2),
                predictor=nn.Conv2d(CHANNELS, CLASSES, 1),
            ),
        )

    def propose(self, x):
        head = self.proposal_generator["rpn_head"]
        x = head["conv"](x)
        return head["objectness_logits"](x), head["anchor_deltas"](x)

    def box(self, stage, x):
        head, predictor = self.roi_heads["box_head"], self.roi_heads["box_predictor"]
        if self.is_cascade:
            head, predictor = head[stage], predictor[stage]
        for i in range(1, 5):
            x = head[f"conv{i}"](x)
        x = head["fc1"](x.flatten(1)).relu()
        return predictor["cls_score"](x), predictor["bbox_pred"](x)

    def mask(self, x):
        head = self.roi_heads["mask_head"]
        for i in range(1, 5):
            x = head[f"mask_fcn{i}"](x)
        return head["predictor"](head["deconv"](x).relu())


def anchors_of(height, width, stride):
    """Return anchors by row, pixel, then ratio of height to width, with areas (8 strides)^2."""
    boxes = []
    for y in range(height):
        for x in range(width):
            for ratio in (0.5, 1.0, 2.0):
                w = math.sqrt((8 * stride) ** 2 / ratio)
                h = ratio * w
                center = torch.tensor([x, y, x, y]) * stride
                boxes.append(center + torch.tensor([-w, -h, w, h]) / 2)
    return torch.stack(boxes)


def decode(boxes, deltas, weights):
    """Return boxes shifted relative to their sizes, which are scaled by exponentials."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    deltas = deltas / torch.tensor(weights)
    centers = boxes[:, :2] + sizes / 2 + deltas[:, :2] * sizes
    sizes = sizes * deltas[:, 2:].exp()
    return torch.cat([centers - sizes / 2, centers + sizes / 2], dim=1)


# The same detectors here, small


def write_config(name, folder):
    """Write a config like a user's: thin heads on a small backbone of the published kind."""
    config = Config.fromfile(CONFIGS / f"{name}.py")
    model, thin = config.model, dict(in_channels=CHANNELS, conv_out_channels=CHANNELS)
    arch = dict(embed_dims=CHANNELS, num_layers=2, cls_token="none", rope=True, divide_out=False)
    model.backbone.update(arch=arch, drop_cls_token=False, init_cfg=None)
    model.neck.update(in_channels=CHANNELS, out_channels=CHANNELS)
    model.rpn_head.update(in_channels=CHANNELS, feat_channels=CHANNELS)
    roi = model.roi_head
    roi.bbox_roi_extractor.out_channels = roi.mask_roi_extractor.out_channels = CHANNELS
    for head in roi.bbox_head if name == CASCADE else [roi.bbox_head]:
        head.update(thin, num_classes=CLASSES, fc_out_channels=FC)
    roi.mask_head.update(thin, num_classes=CLASSES)
    config.dump(folder / "detector.py")
    return folder / "detector.py"


def build(path):
    init_default_scope("mmdet")
    return MODELS.build(Config.fromfile(path).model).eval()


class Case:
    """A detector of Detectron2 and a config of the same network."""

    def __init__(self, name, folder):
        self.name, self.config = name, write_config(name, folder)
        self.heads = Heads(name)
        trunk = build(self.config).state_dict()
        trunk = {k: torch.rand_like(v) for k, v in trunk.items() if "head" not in k.split(".")[0]}
        self.weights = {**KeyMap("vim", "dense").to_original(trunk), **self.heads.state_dict()}

    def convert(self, checkpoint, **options):
        return convert(checkpoint, arch=str(self.config), to="detector", **options)


@pytest.fixture(scope="module")
def case(request, tmp_path_factory):
    torch.manual_seed(0)
    return Case(request.param, tmp_path_factory.mktemp("detector"))


@DETECTORS
def test_heads_compute_the_same(case):
    names = {"backbone.net.patch_embed.proj.weight", "backbone.simfp_2.0.weight"}
    assert names < case.weights.keys()
    converted = case.convert(dict(model=case.weights))
    assert converted.heads_checked and not converted.unused
    model = build(case.config)
    model.load_state_dict(converted.state_dict, strict=True)
    heads, maps = case.heads, torch.randn(2, CHANNELS, 5, 7)
    with torch.no_grad():
        (scores,), (deltas,) = model.rpn_head([maps])
        torch.testing.assert_close((scores, deltas), heads.propose(maps))
        boxes = model.roi_head.bbox_head
        for stage, head in enumerate(boxes if case.name == CASCADE else [boxes]):
            rois = torch.randn(4, CHANNELS, 7, 7)
            torch.testing.assert_close(head(rois), heads.box(stage, rois))
        rois = torch.randn(4, CHANNELS, 14, 14)
        torch.testing.assert_close(model.roi_head.mask_head(rois), heads.mask(rois))


@DETECTORS
def test_boxes_mean_the_same(case):
    """Anchors, their order in the RPN's outputs, and the effect of deltas are the same."""
    model, (height, width) = build(case.config), (2, 3)
    for level, stride in enumerate((4, 8, 16, 32, 64)):
        anchors = model.rpn_head.prior_generator.single_level_grid_priors(
            (height, width), level, device="cpu"
        )
        torch.testing.assert_close(anchors, anchors_of(height, width, stride))
    heads = model.roi_head.bbox_head if case.name == CASCADE else [model.roi_head.bbox_head]
    deltas = torch.randn(18, 4)
    for head, weights in zip(
        [model.rpn_head, *heads], [(1, 1, 1, 1), *WEIGHTS[case.name]], strict=True
    ):
        boxes = head.bbox_coder.decode(anchors, deltas)
        torch.testing.assert_close(boxes, decode(anchors, deltas, weights), rtol=1e-5, atol=1e-3)


@DETECTORS
def test_back_to_detectron2(case):
    converted = case.convert(dict(model=case.weights))
    entries = to_original(converted)
    assert entries.keys() == {"model", "state_dict"}
    assert entries["model"].keys() == case.weights.keys()
    assert all(torch.equal(entries["model"][key], value) for key, value in case.weights.items())


@THE_CASCADE
@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_arrays_of_numpy(case, tmp_path, write):
    """Files of Detectron2's model zoo hold arrays, pickled alone or by torch."""
    arrays = {key: value.numpy() for key, value in case.weights.items()}
    content = dict(model=arrays, __author__="the authors", iteration=np.int64(184374))
    path = tmp_path / "model_final.pth"
    if write == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    found = case.convert(read_checkpoint(path))
    expected = case.convert(dict(model=case.weights))
    assert found.state_dict.keys() == expected.state_dict.keys()
    for key, value in expected.state_dict.items():
        assert torch.equal(found.state_dict[key], value), key


@THE_CASCADE
def test_what_configs_say_is_left_out(case):
    """Constants that some versions of Detectron2 saved."""
    constants = {"pixel_mean": torch.ones(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    constants["proposal_generator.anchor_generator.cell_anchors.0"] = torch.ones(3, 4)
    converted = case.convert(dict(model={**case.weights, **constants}))
    assert set(converted.unused) == constants.keys()


@THE_CASCADE
def test_other_heads_of_detectron2(case):
    """A box head of two layers, as in its first Mask R-CNN, is not one of the project's."""
    checkpoint = dict(model={**case.weights, "roi_heads.box_head.0.fc2.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"1 left over: roi_heads\.box_head\.0\.fc2\.weight"):
        case.convert(checkpoint)
    backbone = convert(checkpoint, arch=str(case.config), to="backbone").state_dict
    assert all(key.startswith("backbone.") for key in backbone)
