"""The published configs against the recipes that the papers' models were trained with."""

from functools import cache

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope
from torch.nn.modules.batchnorm import _BatchNorm

ARCHS = ("v0-tiny", "tiny-s1l8")
NAMES = {
    "in1k": "vmamba-{}_8xb128_in1k",
    "1x": "mask-rcnn_vmamba-{}_fpn_1x_coco",
    "3x": "mask-rcnn_vmamba-{}_fpn_ms-3x_coco",
    "ade": "vmamba-{}_upernet_4xb4-160k_ade20k-512x512",
}


@pytest.fixture(scope="module")
def load(root):
    @cache
    def load(task, arch):
        return Config.fromfile(root / "configs" / "vmamba" / f"{NAMES[task].format(arch)}.py")

    return load


def learning_rates(cfg, epoch_length, steps):
    """The learning rate of each of the iterations `steps`, stepped as the runner does."""
    lr = cfg.optim_wrapper.optimizer.lr
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    length = cfg.train_cfg.get("max_epochs") or cfg.train_cfg.max_iters
    schedulers = []
    for item in cfg.param_scheduler:
        item = dict(item, optimizer=optimizer)
        item.setdefault("end", length)
        if item.get("by_epoch", True) and item.pop("convert_to_iter_based", False):
            item.update(convert_to_iter_based=True, epoch_length=epoch_length)
        schedulers.append(PARAM_SCHEDULERS.build(item))
    rates = {}
    for step in range(max(steps) + 1):
        if step in steps:
            rates[step] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or (step + 1) % epoch_length == 0:
                scheduler.step()
    return rates


def decayed(cfg):
    """The names of the parameters that weight decay acts on, and of those that it spares."""
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    # mixed precision has no part in the groups, and needs a GPU
    options = dict(cfg.optim_wrapper, type="OptimWrapper")
    options.pop("loss_scale", None)
    groups = build_optim_wrapper(model, options).optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    acts = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert acts.keys() == set(names.values())
    full = cfg.optim_wrapper.optimizer.weight_decay
    assert set(acts.values()) == {0.0, full}
    return (
        model,
        {name for name, decay in acts.items() if decay},
        {name for name, decay in acts.items() if not decay},
    )


@pytest.mark.parametrize("arch", ARCHS)
class TestImageNet:
    def test_optimizer(self, load, arch):
        cfg = load("in1k", arch)
        optimizer = cfg.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ("AdamW", 1e-3, 0.05)
        assert (tuple(optimizer.betas), optimizer.eps) == ((0.9, 0.999), 1e-8)
        assert cfg.optim_wrapper.clip_grad == dict(max_norm=5.0)
        assert cfg.optim_wrapper.type == "AmpOptimWrapper"
        assert cfg.optim_wrapper.loss_scale == "dynamic"
        assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 1024

    def test_schedule(self, load, arch):
        cfg = load("in1k", arch)
        assert cfg.train_cfg.max_epochs == 300
        rates = learning_rates(cfg, 10, [0, 100, 200, 1600, 1601, 2999])
        assert rates[0] == pytest.approx(1e-6)
        assert rates[100] == pytest.approx(5e-4, rel=0.02)
        assert rates[200] == pytest.approx(1e-3)
        # half of the cosine, which falls with every iteration
        assert rates[1600] == pytest.approx((1e-3 + 1e-5) / 2)
        assert rates[1601] < rates[1600]
        assert rates[2999] == pytest.approx(1e-5, rel=1e-3)

    def test_decay(self, load, arch):
        model, acts, spared = decayed(load("in1k", arch))
        shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
        assert spared == {
            name for name, ndim in shapes.items() if ndim == 1 or name.endswith(".bias")
        }
        mixer = "backbone.stages.0.blocks.0.mixer."
        assert {mixer + name for name in ("A_logs", "dt_projs_bias", "x_proj_weight")} <= acts
        assert mixer + "Ds" in spared

    def test_augmentation(self, load, arch):
        cfg = load("in1k", arch)
        steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
        assert (steps["RandomResizedCrop"].scale, steps["RandomResizedCrop"].interpolation) == (
            224,
            "bicubic",
        )
        augment = steps["RandAugment"]
        assert (augment.policies, augment.num_policies) == ("timm_increasing", 2)
        assert (augment.magnitude_level, augment.magnitude_std) == (9, 0.5)
        assert (steps["RandomErasing"].erase_prob, steps["RandomErasing"].mode) == (0.25, "rand")
        assert "ColorJitter" not in steps
        mixes = {mix.type: mix.alpha for mix in cfg.model.train_cfg.augments}
        assert mixes == {"Mixup": 0.8, "CutMix": 1.0}
        assert cfg.model.head.loss.type == "LabelSmoothLoss"
        assert cfg.model.head.loss.label_smooth_val == 0.1
        assert cfg.model.backbone.drop_path_rate == 0.2

    def test_evaluation(self, load, arch):
        steps = {step.type: step for step in load("in1k", arch).test_dataloader.dataset.pipeline}
        resize = steps["ResizeEdge"]
        assert (resize.scale, resize.edge, resize.interpolation) == (256, "short", "bicubic")
        assert steps["CenterCrop"].crop_size == 224


def test_weights_are_averaged_except_for_v0_tiny(load):
    (hook,) = load("in1k", "tiny-s1l8").custom_hooks
    assert (hook.type, hook.momentum) == ("mmpretrain.EMAHook", 1e-4)
    assert load("in1k", "v0-tiny").custom_hooks == []


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("task", "epochs", "drops"), [("1x", 12, (8, 11)), ("3x", 36, (27, 33))])
class TestMaskRCNN:
    def test_optimizer_and_schedule(self, load, arch, task, epochs, drops):
        cfg = load(task, arch)
        optimizer = cfg.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ("AdamW", 1e-4, 0.05)
        assert tuple(optimizer.betas) == (0.9, 0.999)
        assert cfg.optim_wrapper.type == "OptimWrapper"
        assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16
        assert cfg.train_cfg.max_epochs == epochs
        steps = [0, 500, 1000, *(200 * drop + offset for drop in drops for offset in (-1, 0))]
        rates = learning_rates(cfg, 200, steps)
        assert rates[0] == pytest.approx(1e-7)
        assert rates[500] == pytest.approx(5e-5, rel=0.01)
        assert [rates[step] for step in steps[2:]] == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-6])

    def test_model(self, load, arch, task, epochs, drops):
        cfg = load(task, arch)
        assert cfg.model.backbone == dict(type="mmvssm.VMamba", arch=arch, drop_path_rate=0.2)
        assert cfg.model.neck.in_channels == [96, 192, 384, 768]
        assert cfg.model.data_preprocessor.pad_size_divisor == 32

    def test_augmentation(self, load, arch, task, epochs, drops):
        steps = {step.type: step for step in load(task, arch).train_dataloader.dataset.pipeline}
        assert steps["RandomFlip"].prob == 0.5
        if task == "1x":
            assert (tuple(steps["Resize"].scale), steps["Resize"].keep_ratio) == ((1333, 800), True)
            return
        full = [(side, 1333) for side in range(480, 801, 32)]
        (plain,), (first, crop, second) = steps["RandomChoice"].transforms
        assert plain.scales == second.scales == full
        assert first.scales == [(400, 1333), (500, 1333), (600, 1333)]
        assert (crop.type, tuple(crop.crop_size)) == ("RandomCrop", (384, 600))


@pytest.mark.parametrize("arch", ARCHS)
class TestUPerNet:
    def test_optimizer(self, load, arch):
        cfg = load("ade", arch)
        optimizer = cfg.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ("AdamW", 6e-5, 0.01)
        assert tuple(optimizer.betas) == (0.9, 0.999)
        assert cfg.optim_wrapper.type == "OptimWrapper"
        assert cfg.train_dataloader.batch_size * 4 == cfg.auto_scale_lr.base_batch_size == 16

    def test_model_and_data(self, load, arch):
        cfg = load("ade", arch)
        drop_path = {"v0-tiny": 0.3, "tiny-s1l8": 0.2}[arch]
        assert cfg.model.backbone == dict(type="mmvssm.VMamba", arch=arch, drop_path_rate=drop_path)
        heads = cfg.model.decode_head, cfg.model.auxiliary_head
        assert [head.num_classes for head in heads] == [150, 150]
        assert [head.in_channels for head in heads] == [[96, 192, 384, 768], 384]
        assert (heads[1].in_index, heads[1].loss_decode.loss_weight) == (2, 0.4)
        assert cfg.model.test_cfg.mode == "whole"
        steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
        resize, crop = steps["RandomResize"], steps["RandomCrop"]
        assert (tuple(resize.scale), tuple(resize.ratio_range)) == ((2048, 512), (0.5, 2.0))
        assert (tuple(crop.crop_size), crop.cat_max_ratio) == ((512, 512), 0.75)
        assert steps["RandomFlip"].prob == 0.5 and "PhotoMetricDistortion" in steps
        resizes, flips, *_ = cfg.tta_pipeline[1].transforms
        assert [item.scale_factor for item in resizes] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
        assert [item.prob for item in flips] == [0.0, 1.0]


def test_upernet_schedule(load):
    cfg = load("ade", "tiny-s1l8")
    assert cfg.param_scheduler == load("ade", "v0-tiny").param_scheduler
    assert cfg.train_cfg.max_iters == load("ade", "v0-tiny").train_cfg.max_iters == 160000
    rates = learning_rates(cfg, 1, [0, 1500, 80750, 159999])
    assert rates[0] == pytest.approx(6e-11)
    assert rates[1500] == pytest.approx(6e-5)
    assert rates[80750] == pytest.approx(3e-5, rel=1e-4)
    assert rates[159999] < 1e-9


@pytest.mark.parametrize("task", ["1x", "ade"])
def test_dense_decay_spares_norms_alone(load, task):
    model, acts, spared = decayed(load(task, "tiny-s1l8"))
    norms = {
        f"{prefix}.{name}"
        for prefix, module in model.backbone.named_modules(prefix="backbone")
        if isinstance(module, (torch.nn.LayerNorm, _BatchNorm))
        for name, _ in module.named_parameters()
    }
    assert spared == norms
    mixer = "backbone.stages.0.blocks.0.mixer."
    assert {mixer + "A_logs", mixer + "Ds", "backbone.patch_embed.conv1.bias"} <= acts


def test_nothing_is_downloaded(load):
    """No URL of weights is left of the configs that ours inherit."""
    for task in NAMES:
        for arch in ARCHS:
            text = load(task, arch).pretty_text
            assert "http" not in text and ".pth" not in text, (task, arch)
