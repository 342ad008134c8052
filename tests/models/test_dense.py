"""Plain backbones in detectors and segmentors, built from configs, on images of any size."""

from pathlib import Path

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
# Neither square nor a multiple of a patch's side. Vim leaves out what fills no patch, LocalVim
# pads it; both resize position tables, which are made for 128x128.
SIZE = (77, 53)
SCALES = {8: (2, 1, 0.5, 0.25), 16: (4, 2, 1, 0.5)}
plain = pytest.mark.parametrize(
    ("backbone", "patch_size", "grid"),
    [("mmvssm.Vim", 8, (9, 6)), ("mmvssm.LocalVim", 16, (5, 4))],
    ids=["Vim", "LocalVim"],
)


def build(name, backbone, patch_size, **options):
    """Build a demo config's model on a shallow backbone, with gradients for all parameters."""
    cfg = Config.fromfile(DEMO / f"{name}.py")
    depth = len(options["backbone.out_indices"])
    arch = dict(embed_dims=96, num_layers=depth, patch_size=patch_size)
    cfg.model.backbone.update(type=backbone, arch=arch, drop_path_rate=0.0)
    cfg.merge_from_dict({f"model.{key}": value for key, value in options.items()})
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def untouched_by_a_step(model, data):
    """Return the names of the parameters that a training step did not change."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = model.train().train_step(data, OptimWrapper(optimizer))
    assert losses["loss"].isfinite() and losses["loss"] > 0
    return {name for name, p in model.named_parameters() if torch.equal(p, before[name])}


def check_levels(model, patch_size, grid, channels):
    maps = model.eval().extract_feat(torch.randn(1, 3, *SIZE))
    sizes = [tuple(int(scale * side) for side in grid) for scale in SCALES[patch_size]]
    assert [tuple(level.shape) for level in maps] == [(1, channels, *size) for size in sizes]


@plain
def test_mask_rcnn(backbone, patch_size, grid):
    options = {
        "backbone.out_indices": (0,),
        "neck.scales": SCALES[patch_size],
        "train_cfg.rcnn.sampler.num": 16,
        "data_preprocessor.pad_size_divisor": 1,
        "test_cfg.rcnn": dict(score_thr=0.0, max_per_img=3),
    }
    model = build("mask-rcnn_vim-micro_digits-det", backbone, patch_size, **options)
    images = [(3, *SIZE), (3, 64, 48)]
    untouched = untouched_by_a_step(model, demo_mm_inputs(2, images, [3, 2], with_mask=True))
    # of the coarsest level's few large anchors none may be sampled
    coarsest = "neck.levels." + list(model.neck.levels)[-1]
    assert all(name.startswith(coarsest) for name in untouched), untouched

    with torch.no_grad():
        check_levels(model, patch_size, grid, 64)
        results = model.test_step(demo_mm_inputs(2, images, [1, 1]))
    for result, (_, *size) in zip(results, images):
        found = result.pred_instances
        assert len(found) == 3 and found.scores.isfinite().all()
        assert list(found.masks.shape[1:]) == size


@plain
def test_upernet(backbone, patch_size, grid):
    options = {
        "backbone.out_indices": (0, 1, 2, 3),
        "neck.rescales": SCALES[patch_size],
        "data_preprocessor.size": SIZE,
    }
    model = build("vim-micro_upernet_digits-seg", backbone, patch_size, **options)
    samples = [SegDataSample(metainfo=dict(img_shape=SIZE, ori_shape=SIZE)) for _ in range(2)]
    for sample in samples:
        sample.gt_sem_seg = PixelData(data=torch.randint(11, (1, *SIZE)))
    images = [torch.randint(256, (3, *SIZE), dtype=torch.uint8) for _ in samples]
    untouched = untouched_by_a_step(model, dict(inputs=images, data_samples=samples))
    # biases that a batch norm subtracts again
    biases = ("4x.0", "4x.3", "2x.0")
    assert untouched <= {f"neck.upsample_{name}.bias" for name in biases}

    with torch.no_grad():
        check_levels(model, patch_size, grid, 96)
        (result,) = model.test_step(dict(inputs=images[:1], data_samples=samples[:1]))
    logits = result.seg_logits.data
    assert logits.shape == (11, *SIZE) and logits.isfinite().all()
