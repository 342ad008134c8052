"""The hierarchical families' configs against the recipes of the published models."""

from functools import cache

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.datasets import RandAugment
from torch.nn.modules.batchnorm import _BatchNorm

NAMES = {
    "in1k": "{}-{}_8xb128_in1k",
    "1x": "mask-rcnn_{}-{}_fpn_1x_coco",
    "3x": "mask-rcnn_{}-{}_fpn_ms-3x_coco",
    "ade": "{}-{}_upernet_4xb4-160k_ade20k-512x512",
    "ade640": "{}-{}_upernet_4xb4-160k_ade20k-640x640",
    "ade896": "{}-{}_upernet_4xb4-160k_ade20k-896x896",
}
TYPES = {
    "vmamba": "mmvssm.VMamba",
    "efficient-vmamba": "mmvssm.EfficientVMamba",
    "msvmamba": "mmvssm.MSVMamba",
    "local-vmamba": "mmvssm.LocalVMamba",
}

# ImageNet: the recipe of Swin, and that of the trainer of LocalMamba
SWIN = dict(lr=1e-3, first=1e-6, last=1e-5, decay=0.05, clip=5.0, mixup=0.8, increasing=True)
LOCAL = dict(lr=1e-3, first=1e-7, last=1e-6, decay=0.04, clip=1.0, mixup=0.2, increasing=False)
IMAGENET = {
    ("vmamba", "v0-tiny"): dict(SWIN, drop_path=0.1, ema=False),
    ("vmamba", "tiny-s1l8"): dict(SWIN, drop_path=0.2),
    ("efficient-vmamba", "tiny"): dict(LOCAL, lr=2e-3, images=2048, drop_path=0.1),
    ("efficient-vmamba", "base"): dict(LOCAL, lr=2e-3, drop_path=0.1),
    ("msvmamba", "nano"): dict(SWIN, drop_path=0.2),
    ("msvmamba", "v3-base"): dict(SWIN, lr=6e-4, last=6e-6, drop_path=0.5),
    ("local-vmamba", "tiny"): dict(LOCAL, drop_path=0.1),
}
# Dense tasks: width of the first stage, drop path in detection and segmentation, mixed precision
DENSE = {
    ("vmamba", "v0-tiny"): (96, 0.2, 0.3, ()),
    ("vmamba", "tiny-s1l8"): (96, 0.2, 0.2, ()),
    ("efficient-vmamba", "tiny"): (48, 0.2, 0.3, ("1x", "3x")),
    ("msvmamba", "nano"): (48, 0.2, 0.3, ()),
    ("local-vmamba", "small"): (96, 0.1, 0.2, ("1x", "3x", "ade")),
}
DROP_PATHS = {
    "in1k": {
        "vmamba": "v0-tiny 0.1 v0-small 0.3 v0-base 0.6"
        " tiny-s2l5 0.2 small-s2l15 0.3 base-s2l15 0.6"
        " tiny-s1l8 0.2 small-s1l20 0.3 base-s1l20 0.5",
        "efficient-vmamba": "tiny 0.1 small 0.1 base 0.1",
        "msvmamba": "nano 0.2 micro 0.2 tiny 0.2 v3-tiny 0.2 v3-small 0.4 v3-base 0.5",
        "local-vmamba": "tiny 0.1 small 0.1 tiny-search 0.1 small-search 0.1",
    },
    "1x": {
        "vmamba": "v0-tiny 0.2 v0-small 0.2 v0-base 0.2"
        " tiny-s2l5 0.2 small-s2l15 0.3 base-s2l15 0.6"
        " tiny-s1l8 0.2 small-s1l20 0.3 base-s1l20 0.6",
        "efficient-vmamba": "tiny 0.2 small 0.2 base 0.2",
        "msvmamba": "nano 0.2 micro 0.2 tiny 0.2 v3-tiny 0.2 v3-small 0.4 v3-base 0.5",
        "local-vmamba": "tiny 0.1 small 0.1",
    },
    "ade": {
        "vmamba": "v0-tiny 0.3 v0-small 0.3 v0-base 0.3"
        " tiny-s2l5 0.2 small-s2l15 0.3 base-s2l15 0.6"
        " tiny-s1l8 0.2 small-s1l20 0.3 base-s1l20 0.6",
        "efficient-vmamba": "tiny 0.3 small 0.3 base 0.3",
        "msvmamba": "nano 0.3 micro 0.3 tiny 0.2 v3-tiny 0.2 v3-small 0.4 v3-base 0.5",
        "local-vmamba": "tiny 0.1 small 0.2",
    },
}
DROP_PATHS["3x"] = DROP_PATHS["1x"]


@pytest.fixture(scope="module")
def load(root):
    @cache
    def load(task, family, arch):
        (file,) = (root / "configs").glob(f"*/{NAMES[task].format(family, arch)}.py")
        return Config.fromfile(file)

    return load


def decayed(cfg):
    """The names of the parameters that weight decay acts on, and of those that it spares."""
    init_default_scope(cfg.default_scope)
    with torch.device("meta"):
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


def leaves(names):
    return {name.rpartition(".")[2] for name in names}


@pytest.mark.parametrize(("family", "arch"), IMAGENET)
class TestImageNet:
    def test_optimizer(self, load, family, arch):
        cfg, recipe = load("in1k", family, arch), IMAGENET[family, arch]
        optimizer = cfg.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.lr) == ("AdamW", pytest.approx(recipe["lr"]))
        assert optimizer.weight_decay == recipe["decay"]
        assert (tuple(optimizer.betas), optimizer.eps) == ((0.9, 0.999), 1e-8)
        assert cfg.optim_wrapper.clip_grad == dict(max_norm=recipe["clip"])
        assert cfg.optim_wrapper.type == "AmpOptimWrapper"
        assert cfg.optim_wrapper.loss_scale == "dynamic"

    def test_batch(self, load, family, arch):
        cfg, recipe = load("in1k", family, arch), IMAGENET[family, arch]
        assert cfg.train_dataloader.batch_size == 128
        assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size
        batches = cfg.optim_wrapper.get("accumulative_counts", 1)
        assert 1024 * batches == recipe.get("images", 1024)

    def test_schedule(self, load, family, arch, learning_rates):
        cfg, recipe = load("in1k", family, arch), IMAGENET[family, arch]
        lr, first, last = recipe["lr"], recipe["first"], recipe["last"]
        assert cfg.train_cfg.max_epochs == 300
        rates = learning_rates(cfg, 10, [0, 9, 100, 200, 1600, 1601, 2999])
        assert rates[0] == pytest.approx(first)
        if recipe["increasing"]:
            assert rates[9] > 1.1 * rates[0]
            assert rates[100] == pytest.approx((first + lr) / 2, rel=0.02)
        else:
            # in steps of an epoch
            assert rates[9] == rates[0]
            assert rates[100] == pytest.approx((first + lr) / 2)
        assert rates[200] == pytest.approx(lr)
        # half of the cosine, which falls with every iteration
        assert rates[1600] == pytest.approx((lr + last) / 2)
        assert rates[1601] < rates[1600]
        assert rates[2999] == pytest.approx(last, rel=3e-3)

    def test_weights_are_averaged_at_every_step(self, load, family, arch):
        cfg, recipe = load("in1k", family, arch), IMAGENET[family, arch]
        if not recipe.get("ema", True):
            assert cfg.custom_hooks == []
            return
        (hook,) = cfg.custom_hooks
        assert (hook.type, hook.momentum) == ("mmpretrain.EMAHook", 1e-4)
        # batch norms have buffers
        assert hook.get("update_buffers", False) == (family == "efficient-vmamba")
        assert hook.get("interval", 1) == cfg.optim_wrapper.get("accumulative_counts", 1)

    def test_decay(self, load, family, arch):
        model, acts, spared = decayed(load("in1k", family, arch))
        shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
        assert spared == {
            name for name, ndim in shapes.items() if ndim == 1 or name.endswith(".bias")
        }
        assert {"A_logs", "dt_projs_bias", "x_proj_weight"} <= leaves(acts) - leaves(spared)
        assert "Ds" in leaves(spared) - leaves(acts)

    def test_augmentation(self, load, family, arch):
        cfg, recipe = load("in1k", family, arch), IMAGENET[family, arch]
        steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
        assert (steps["RandomResizedCrop"].scale, steps["RandomResizedCrop"].interpolation) == (
            224,
            "bicubic",
        )
        augment = steps["RandAugment"]
        assert (augment.num_policies, augment.total_level) == (2, 10)
        assert (augment.magnitude_level, augment.magnitude_std) == (9, 0.5)
        if recipe["increasing"]:
            assert augment.policies == "timm_increasing"
        assert (steps["RandomErasing"].erase_prob, steps["RandomErasing"].mode) == (0.25, "rand")
        assert steps["RandomFlip"].prob == 0.5
        assert "ColorJitter" not in steps
        mixes = {mix.type: mix.alpha for mix in cfg.model.train_cfg.augments}
        assert mixes == {"Mixup": recipe["mixup"], "CutMix": 1.0}
        assert cfg.model.head.loss.type == "LabelSmoothLoss"
        assert cfg.model.head.loss.label_smooth_val == 0.1

    def test_model_and_evaluation(self, load, family, arch):
        cfg = load("in1k", family, arch)
        assert cfg.model.backbone == dict(
            type=TYPES[family],
            arch=arch,
            drop_path_rate=IMAGENET[family, arch]["drop_path"],
            out_indices=(3,),
        )
        steps = {step.type: step for step in cfg.test_dataloader.dataset.pipeline}
        resize = steps["ResizeEdge"]
        assert (resize.scale, resize.edge, resize.interpolation) == (256, "short", "bicubic")
        assert steps["CenterCrop"].crop_size == 224


def test_policies_that_do_not_increase(load):
    """What timm's `rand-m9` does at level 9: threshold 230, 3 bits, enhanced by 1.72."""
    cfg = load("in1k", "local-vmamba", "tiny")
    init_default_scope(cfg.default_scope)
    step = next(s for s in cfg.train_dataloader.dataset.pipeline if s.type == "RandAugment")
    options = {key: value for key, value in step.items() if key not in ("type", "_scope_")}
    stock = RandAugment(**dict(options, policies="timm_increasing")).policies
    ours = RandAugment(**dict(options, magnitude_std=0.0))
    assert [policy["type"] for policy in ours.policies] == [policy["type"] for policy in stock]
    differ = {"Posterize", "Solarize", "ColorTransform", "Contrast", "Brightness", "Sharpness"}
    for policy, other in zip(ours.policies, stock):
        same = policy.get("magnitude_range") == other.get("magnitude_range")
        assert same == (policy["type"] not in differ)
    magnitudes = {
        policy["type"]: transform.random_magnitude()
        for policy, transform in zip(ours.policies, ours)
        if policy["type"] in differ
    }
    assert magnitudes.pop("Posterize") == pytest.approx(2.6)  # rounded up to 3 bits
    assert magnitudes.pop("Solarize") == pytest.approx(230.4)
    assert all(value == pytest.approx(0.72) for value in magnitudes.values())
    enhancing = [p for p in ours.policies if p.get("magnitude_range") == (-0.9, 0.9)]
    assert [policy["random_negative_prob"] for policy in enhancing] == [0.0] * 4


@pytest.mark.parametrize("task", DROP_PATHS)
@pytest.mark.parametrize("family", TYPES)
def test_drop_path_of_every_network(load, root, task, family):
    words = DROP_PATHS[task][family].split()
    for arch, rate in zip(words[::2], words[1::2]):
        cfg = load(task, family, arch)
        assert (cfg.model.backbone.arch, cfg.model.backbone.drop_path_rate) == (arch, float(rate))
    pattern = NAMES[task].format(family, "*")
    assert len(list((root / "configs").glob(f"*/{pattern}.py"))) == len(words) / 2


@pytest.mark.parametrize(("family", "arch"), DENSE)
@pytest.mark.parametrize(("task", "epochs", "drops"), [("1x", 12, (8, 11)), ("3x", 36, (27, 33))])
class TestMaskRCNN:
    def test_optimizer_and_schedule(self, load, family, arch, task, epochs, drops, learning_rates):
        cfg = load(task, family, arch)
        optimizer = cfg.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ("AdamW", 1e-4, 0.05)
        assert tuple(optimizer.betas) == (0.9, 0.999)
        amp = task in DENSE[family, arch][3]
        assert cfg.optim_wrapper.type == ("AmpOptimWrapper" if amp else "OptimWrapper")
        assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16
        assert cfg.train_cfg.max_epochs == epochs
        steps = [0, 500, 1000, *(200 * drop + offset for drop in drops for offset in (-1, 0))]
        rates = learning_rates(cfg, 200, steps)
        assert rates[0] == pytest.approx(1e-7)
        assert rates[500] == pytest.approx(5e-5, rel=0.01)
        assert [rates[step] for step in steps[2:]] == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-6])

    def test_model(self, load, family, arch, task, epochs, drops):
        cfg = load(task, family, arch)
        width, drop_path, *_ = DENSE[family, arch]
        assert cfg.model.backbone == dict(type=TYPES[family], arch=arch, drop_path_rate=drop_path)
        assert cfg.model.neck.in_channels == [width, 2 * width, 4 * width, 8 * width]
        assert cfg.model.data_preprocessor.pad_size_divisor == 32

    def test_augmentation(self, load, family, arch, task, epochs, drops):
        pipeline = load(task, family, arch).train_dataloader.dataset.pipeline
        steps = {step.type: step for step in pipeline}
        assert steps["RandomFlip"].prob == 0.5
        if task == "1x":
            assert (tuple(steps["Resize"].scale), steps["Resize"].keep_ratio) == ((1333, 800), True)
            return
        full = [(side, 1333) for side in range(480, 801, 32)]
        (plain,), (first, crop, second) = steps["RandomChoice"].transforms
        assert plain.scales == second.scales == full
        assert first.scales == [(400, 1333), (500, 1333), (600, 1333)]
        assert (crop.type, tuple(crop.crop_size)) == ("RandomCrop", (384, 600))


@pytest.mark.parametrize(("family", "arch"), DENSE)
class TestUPerNet:
    def test_optimizer(self, load, family, arch):
        cfg = load("ade", family, arch)
        optimizer = cfg.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ("AdamW", 6e-5, 0.01)
        assert tuple(optimizer.betas) == (0.9, 0.999)
        amp = "ade" in DENSE[family, arch][3]
        assert cfg.optim_wrapper.type == ("AmpOptimWrapper" if amp else "OptimWrapper")
        assert cfg.train_dataloader.batch_size * 4 == cfg.auto_scale_lr.base_batch_size == 16

    def test_schedule(self, load, family, arch):
        cfg = load("ade", family, arch)
        assert cfg.train_cfg.max_iters == 160000
        warm_up, fall = cfg.param_scheduler
        assert (warm_up.type, warm_up.start_factor, warm_up.end) == ("LinearLR", 1e-6, 1500)
        assert (fall.type, fall.power, fall.eta_min) == ("PolyLR", 1.0, 0.0)
        assert (fall.begin, fall.end) == (1500, 160000)
        assert not warm_up.by_epoch and not fall.by_epoch

    def test_model_and_data(self, load, family, arch):
        cfg = load("ade", family, arch)
        width, _, drop_path, _ = DENSE[family, arch]
        widths = [width, 2 * width, 4 * width, 8 * width]
        assert cfg.model.backbone == dict(type=TYPES[family], arch=arch, drop_path_rate=drop_path)
        heads = cfg.model.decode_head, cfg.model.auxiliary_head
        assert [head.num_classes for head in heads] == [150, 150]
        assert [head.in_channels for head in heads] == [widths, widths[2]]
        assert [head.channels for head in heads] == [512, 256]
        assert (heads[1].in_index, heads[1].loss_decode.loss_weight) == (2, 0.4)
        assert cfg.model.test_cfg.mode == "whole"
        check_segmentation_data(cfg, 512)


def check_segmentation_data(cfg, side):
    assert tuple(cfg.model.data_preprocessor.size) == (side, side)
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    resize, crop = steps["RandomResize"], steps["RandomCrop"]
    assert (tuple(resize.scale), tuple(resize.ratio_range)) == ((4 * side, side), (0.5, 2.0))
    assert (tuple(crop.crop_size), crop.cat_max_ratio) == ((side, side), 0.75)
    assert steps["RandomFlip"].prob == 0.5 and "PhotoMetricDistortion" in steps
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        steps = {step.type: step for step in loader.dataset.pipeline}
        assert tuple(steps["Resize"].scale) == (4 * side, side)
    resizes, flips, *_ = cfg.tta_pipeline[1].transforms
    assert [item.scale_factor for item in resizes] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert [item.prob for item in flips] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("arch", "side"), [("v0-small", 640), ("v0-small", 896), ("small-s2l15", 640)]
)
def test_upernet_on_larger_crops(load, arch, side):
    cfg = load(f"ade{side}", "vmamba", arch)
    check_segmentation_data(cfg, side)
    assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == 150
    small = load("ade", "vmamba", arch)
    for key in ("optim_wrapper", "param_scheduler", "train_cfg", "auto_scale_lr"):
        assert cfg[key] == small[key]
    assert cfg.model.backbone == small.model.backbone


def test_upernet_learning_rates(load, learning_rates):
    rates = learning_rates(load("ade", "vmamba", "tiny-s1l8"), 1, [0, 1500, 80750, 159999])
    assert rates[0] == pytest.approx(6e-11)
    assert rates[1500] == pytest.approx(6e-5)
    assert rates[80750] == pytest.approx(3e-5, rel=1e-4)
    assert rates[159999] < 1e-9


@pytest.mark.parametrize(("family", "arch"), DENSE)
@pytest.mark.parametrize("task", ["1x", "ade"])
def test_dense_decay_spares_norms_alone(load, task, family, arch):
    model, acts, spared = decayed(load(task, family, arch))
    norms = {
        f"{prefix}.{name}"
        for prefix, module in model.backbone.named_modules(prefix="backbone")
        if isinstance(module, (torch.nn.LayerNorm, _BatchNorm))
        for name, _ in module.named_parameters()
    }
    assert {name for name in spared if name.startswith("backbone.")} == norms
    assert {"A_logs", "Ds", "dt_projs_bias"} <= leaves(acts) - leaves(spared)


def test_nothing_is_downloaded(load):
    """No URL of weights is left of the configs that ours inherit."""
    for task in ("in1k", "1x", "3x", "ade"):
        for family, arch in DENSE:
            text = str(load(task, family, arch)._cfg_dict)
            assert "http" not in text and ".pth" not in text, (task, family, arch)
