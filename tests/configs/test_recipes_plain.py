"""The configs of Vim and LocalVim against the recipes that the papers' models were trained with."""

from functools import cache

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATA_SAMPLERS, MODELS, init_default_scope

EPOCH = 10  # iterations of an epoch in these tests
SLIDING = dict(mode="slide", crop_size=(512, 512), stride=(341, 341))


@pytest.fixture(scope="module")
def load(root):
    @cache
    def load(name):
        (file,) = (root / "configs").glob(f"*vim/{name}.py")
        return Config.fromfile(file)

    return load


def groups_of(cfg):
    """The model, and of each of its parameters the learning rate and the weight decay."""
    init_default_scope(cfg.default_scope)
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    values = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }
    assert values.keys() == set(names.values())
    return model, values


def adamw(cfg):
    """Learning rate and decay of AdamW with the usual moments, in full precision."""
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, tuple(optimizer.betas)) == ("AdamW", (0.9, 0.999))
    assert optimizer.get("eps", 1e-8) == 1e-8
    assert cfg.optim_wrapper.type == "OptimWrapper"
    return optimizer.lr, optimizer.weight_decay


def decayed(cfg):
    """Names of decayed and of spared parameters; one learning rate for all."""
    rate, decay = adamw(cfg)
    model, values = groups_of(cfg)
    assert set(values.values()) == {(rate, decay), (rate, 0.0)}
    return (
        dict(model.named_parameters()),
        {name for name in values if values[name][1]},
        {name for name in values if not values[name][1]},
    )


def augmentation(cfg):
    """Steps of the pipeline that trains, by name."""
    return {step.type: step for step in cfg.train_dataloader.dataset.pipeline}


VIM = {  # images of a device, weight decay, drop path, width
    "vim-tiny_8xb128_in1k": (128, 0.1, 0.0, 192),
    "vim-small_8xb64_in1k": (64, 0.05, 0.05, 384),
    "vim-base_8xb64_in1k": (64, 0.05, 0.05, 768),
}
LOCAL_VIM = {"tiny": 192, "tiny-mid-cls": 192, "small": 384, "small-searched": 384}


class TestImageNet:
    @pytest.mark.parametrize("name", VIM)
    def test_vim(self, load, name):
        cfg, (batch, decay, drop_path, width) = load(name), VIM[name]
        assert adamw(cfg) == (1e-3, decay)
        assert cfg.optim_wrapper.get("clip_grad") is None
        assert cfg.train_dataloader.batch_size == batch
        assert cfg.auto_scale_lr.base_batch_size == 8 * batch
        arch = name.split("_")[0].removeprefix("vim-")
        assert cfg.model.backbone == dict(type="mmvssm.Vim", arch=arch, drop_path_rate=drop_path)
        assert (cfg.model.neck, cfg.model.head.in_channels) == (None, width)
        (hook,) = cfg.custom_hooks
        assert (hook.type, hook.momentum) == ("mmpretrain.EMAHook", pytest.approx(1 - 0.99996))

    def test_schedule_of_vim(self, load, learning_rates):
        cfg = load("vim-tiny_8xb128_in1k")
        assert cfg.train_cfg.max_epochs == 300
        # in steps of an epoch, up to the sixth; half of the cosine; its end
        rates = list(learning_rates(cfg, EPOCH, [0, 9, 10, 40, 50, 60, 1525, 1530, 2999]).values())
        warm_up = [1e-6 + epoch / 5 * (1e-3 - 1e-6) for epoch in (0, 0, 1, 4, 5)]
        assert rates[:5] == pytest.approx(warm_up)
        assert 0.999e-3 < rates[5] < 1e-3
        middle = (1e-3 + 1e-5) / 2
        assert rates[6] > middle > rates[7] and sum(rates[6:8]) == pytest.approx(2 * middle)
        assert rates[8] == pytest.approx(1e-5, rel=5e-3)

    @pytest.mark.parametrize("size", ["tiny", "small"])
    def test_fine_tuning_of_stride_8(self, load, size):
        cfg = load(f"vim-{size}-stride8_8xb128_in1k")
        assert adamw(cfg) == (1e-5, 1e-8)
        assert cfg.param_scheduler is None and cfg.train_cfg.max_epochs == 30
        assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 1024
        assert cfg.model.backbone == dict(
            type="mmvssm.Vim", arch=f"{size}-stride8", drop_path_rate=0.0
        )
        # where the training of stride 16 leaves its weights
        stem, file = cfg.load_from.removeprefix("work_dirs/").split("/")
        assert file == f"epoch_{load(stem).train_cfg.max_epochs}.pth"
        assert load(stem).model.backbone.arch == size

    @pytest.mark.parametrize("arch", LOCAL_VIM)
    def test_local_vim(self, load, arch):
        cfg = load(f"local-vim-{arch}_8xb128_in1k")
        assert adamw(cfg) == (1e-3, 0.04)
        assert cfg.optim_wrapper.get("clip_grad") is None
        assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 1024
        assert cfg.model.backbone == dict(type="mmvssm.LocalVim", arch=arch, drop_path_rate=0.1)
        assert (cfg.model.neck, cfg.model.head.in_channels) == (None, LOCAL_VIM[arch])
        assert cfg.custom_hooks == []

    def test_schedule_of_local_vim(self, load, learning_rates):
        cfg = load("local-vim-tiny_8xb128_in1k")
        assert cfg.train_cfg.max_epochs == 300
        rates = list(learning_rates(cfg, EPOCH, [0, 9, 10, 190, 200, 1600, 1601, 2999]).values())
        warm_up = [1e-7 + epoch / 20 * (1e-3 - 1e-7) for epoch in (0, 0, 1, 19, 20)]
        assert rates[:5] == pytest.approx(warm_up)
        # half of the cosine, which falls with every iteration
        assert rates[5] == pytest.approx((1e-3 + 1e-6) / 2)
        assert rates[6] < rates[5]
        assert rates[7] == pytest.approx(1e-6, rel=1e-2)

    @pytest.mark.parametrize("name", ["vim-tiny_8xb128_in1k", "local-vim-tiny-mid-cls_8xb128_in1k"])
    def test_decay(self, load, name):
        parameters, acts, spared = decayed(load(name))
        tables = {"backbone.pos_embed", "backbone.cls_token"}
        assert tables < spared
        assert spared - tables == {
            name
            for name, parameter in parameters.items()
            if parameter.ndim == 1 or name.endswith((".bias", ".dt_projs_bias"))
        }
        mixer = "backbone.layers.0.mixer."
        assert {mixer + name for name in ("A_logs", "conv1d.weight", "x_proj_weight")} < acts
        assert {mixer + name for name in ("Ds", "dt_projs_bias", "conv1d.bias")} < spared

    @pytest.mark.parametrize("name", ["vim-small_8xb64_in1k", "local-vim-small_8xb128_in1k"])
    def test_augmentation(self, load, name):
        cfg, steps = load(name), augmentation(load(name))
        crop = steps["RandomResizedCrop"]
        assert (crop.scale, crop.interpolation) == (224, "bicubic")
        augment = steps["RandAugment"]
        assert (augment.num_policies, augment.magnitude_level, augment.magnitude_std) == (2, 9, 0.5)
        assert (augment.policies == "timm_increasing") == name.startswith("vim")
        assert (steps["RandomErasing"].erase_prob, steps["RandomErasing"].mode) == (0.25, "rand")
        assert steps["RandomFlip"].prob == 0.5 and "ColorJitter" not in steps
        mixes = {mix.type: mix.alpha for mix in cfg.model.train_cfg.augments}
        assert mixes == {"Mixup": 0.8 if name.startswith("vim") else 0.2, "CutMix": 1.0}
        assert cfg.model.head.loss.type == "LabelSmoothLoss"
        assert cfg.model.head.loss.label_smooth_val == 0.1
        tests = {step.type: step for step in cfg.test_dataloader.dataset.pipeline}
        assert (tests["ResizeEdge"].scale, tests["ResizeEdge"].interpolation) == (256, "bicubic")
        assert tests["CenterCrop"].crop_size == 224

    def test_images_are_repeated_for_vim_alone(self, load):
        init_default_scope("mmpretrain")
        cfg = load("vim-tiny_8xb128_in1k")
        sampler = DATA_SAMPLERS.build(dict(cfg.train_dataloader.sampler, dataset=range(30), seed=0))
        assert sorted(sampler) == sorted(3 * list(set(sampler))) and len(sampler) == 30
        assert load("local-vim-tiny_8xb128_in1k").train_dataloader.sampler.type == "DefaultSampler"


DETECTORS = {  # width, weight decay
    "vim-tiny": (192, 0.1),
    "vim-small": (384, 0.1),
    "vim-base": (768, 0.1),
    "local-vim-tiny": (192, 0.05),
    "local-vim-small": (384, 0.05),
    "local-vim-small-searched": (384, 0.05),
}


@pytest.mark.parametrize("model", DETECTORS)
@pytest.mark.parametrize(
    ("schedule", "epochs", "drops"), [("1x", 12, (8, 11)), ("ms-3x", 36, (27, 33))]
)
def test_mask_rcnn(load, model, schedule, epochs, drops):
    cfg, (width, decay) = load(f"mask-rcnn_{model}_fpn_{schedule}_coco"), DETECTORS[model]
    assert adamw(cfg) == (1e-4, decay)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_cfg.max_epochs == epochs
    assert tuple(cfg.param_scheduler[1].milestones) == drops
    assert cfg.param_scheduler[0].end == 1000
    options = dict(out_type="featmap", drop_path_rate=0.1)
    if model.startswith("vim"):
        own = dict(type="mmvssm.Vim", arch=model[4:], drop_cls_token=True, out_norm=False)
        assert cfg.optim_wrapper.get("clip_grad") is None
    else:
        own = dict(type="mmvssm.LocalVim", arch=model[10:], feature="mixer", out_norm="ln")
        assert cfg.optim_wrapper.clip_grad == dict(max_norm=35)
    assert cfg.model.backbone == {**own, **options}
    assert cfg.model.neck == dict(
        type="mmvssm.SimpleFeaturePyramid", in_channels=width, out_channels=256, num_outs=5
    )
    steps = augmentation(cfg)
    assert ("RandomChoice" in steps) == (schedule == "ms-3x")


@pytest.mark.parametrize(("arch", "rate"), [("tiny", 0.837), ("small", 0.837), ("base", 0.7)])
def test_layer_decay_of_vims_detectors(load, arch, rate):
    _, values = groups_of(load(f"mask-rcnn_vim-{arch}_fpn_1x_coco"))
    for name, (lr, decay) in values.items():
        depth = 25
        if name.startswith(("backbone.patch_embed.", "backbone.pos_embed")):
            depth = 0
        elif name.startswith("backbone.layers."):
            depth = int(name.split(".")[2]) + 1
        assert lr == pytest.approx(1e-4 * rate ** (25 - depth)), name
        spared = "norm" in name or name == "backbone.pos_embed"
        assert decay == (0 if spared else pytest.approx(0.1)), name


def test_rates_and_decay_of_local_vims_detectors(load):
    _, values = groups_of(load("mask-rcnn_local-vim-tiny_fpn_ms-3x_coco"))
    for name, value in values.items():
        first = name.startswith(("backbone.patch_embed.", "backbone.pos_embed"))
        assert value == (pytest.approx(1e-4 * (0.7**13 if first else 1)), 0.05), name


@pytest.mark.parametrize(
    ("name", "decay", "layer_decay", "embedding"),
    [
        ("cascade-mask-rcnn_vim-tiny", 0.1, 0.837, 0.837**25),
        ("cascade-mask-rcnn_vim-base", 0.1, 0.7, 0.7**25),
        ("mask-rcnn_local-vim-tiny", 0.05, 1.0, 0.7**13),
    ],
)
def test_published_training_of_detectors(load, name, decay, layer_decay, embedding):
    cfg = load(f"{name}_fpn_lsj-184k_coco")
    usual = load(f"{name.removeprefix('cascade-')}_fpn_1x_coco")
    assert cfg.model.backbone == usual.model.backbone
    assert cfg.model.neck == usual.model.neck
    if name.startswith("cascade"):
        assert cfg.model.type == "CascadeRCNN"
        assert cfg.optim_wrapper.pop("type") == "AmpOptimWrapper"
        cfg.optim_wrapper.type = "OptimWrapper"  # mixed precision needs a GPU
    else:
        assert (cfg.model.type, cfg.model.rpn_head.num_convs) == ("MaskRCNN", 2)
        assert cfg.model.roi_head.bbox_head.type == "Shared4Conv1FCBBoxHead"
        assert cfg.optim_wrapper.clip_grad == dict(max_norm=35)
    assert adamw(cfg) == (1e-4, decay)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 64
    assert cfg.train_cfg.max_iters == 184375
    warm_up, drops = cfg.param_scheduler
    assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (0.001, 250, False)
    assert (drops.milestones, drops.by_epoch) == ([163889, 177546], False)
    assert cfg.train_dataloader.dataset.type == "CocoDataset"
    steps = augmentation(cfg)
    assert (steps["RandomResize"].scale, steps["RandomResize"].ratio_range) == (
        (1024, 1024),
        (0.1, 2.0),
    )
    assert steps["RandomCrop"].crop_size == (1024, 1024)
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (1024, 1024)
    # all images are filled up to 1024 x 1024: zeros behind the mean for Vim, grey for LocalVim
    if cfg.model.type == "CascadeRCNN":
        assert cfg.model.data_preprocessor.pad_size_divisor == 1024
    else:
        pads = [
            [
                (step.size, step.pad_val.img)
                for step in loader.dataset.pipeline
                if step.type == "Pad"
            ]
            for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
        ]
        assert pads == [[((1024, 1024), (114, 114, 114))]] * 3
    model, values = groups_of(cfg)
    for key, factor in (
        ("patch_embed.conv1.weight", embedding),
        ("pos_embed", embedding),
        ("layers.3.mixer.A_logs", layer_decay ** (model.backbone.num_layers + 1 - 4)),
    ):
        assert values[f"backbone.{key}"][0] == pytest.approx(1e-4 * factor)
    norms = {value[1] for key, value in values.items() if "norm" in key}
    assert norms == {decay if name.startswith("mask") else 0.0}


SEGMENTORS = {  # width, learning rate, weight decay, layer decay that was asked for
    "vim-tiny": (192, 1e-4, 0.1, 0.92),
    "vim-small": (384, 5e-5, 0.05, 0.95),
    "vim-base": (768, 5e-5, 0.05, 0.95),
    "local-vim-tiny": (192, 6e-5, 0.01, None),
    "local-vim-small": (384, 6e-5, 0.01, None),
    "local-vim-small-searched": (384, 6e-5, 0.01, None),
}


@pytest.mark.parametrize("model", SEGMENTORS)
def test_upernet(load, model):
    cfg = load(f"{model}_upernet_4xb4-160k_ade20k-512x512")
    width, rate, decay, _ = SEGMENTORS[model]
    assert adamw(cfg) == (pytest.approx(rate), decay)
    assert cfg.train_dataloader.batch_size * 4 == cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_cfg.max_iters == 160000
    options = dict(out_type="featmap", drop_path_rate=0.1)
    decode, auxiliary = cfg.model.decode_head, cfg.model.auxiliary_head
    assert decode.in_channels == [width] * 4 and auxiliary.in_channels == width
    assert (decode.num_classes, auxiliary.num_classes, auxiliary.channels) == (150, 150, 256)
    assert auxiliary.loss_decode.loss_weight == 0.4
    if model.startswith("vim"):
        own = dict(type="mmvssm.Vim", arch=model[4:], drop_cls_token=True, out_norm=False)
        own["out_indices"] = (5, 11, 17, 23)
        if model == "vim-tiny":
            own["feature"] = "mixer"
        assert cfg.model.neck == dict(type="mmseg.Feature2Pyramid", embed_dim=width)
        assert cfg.model.test_cfg == SLIDING
        assert (decode.channels, auxiliary.in_index) == (width, 2)
    else:
        own = dict(type="mmvssm.LocalVim", arch=model[10:], feature="mixer", out_norm="ln")
        own["out_indices"] = (4, 9, 14, 19)
        assert "neck" not in cfg.model and cfg.model.test_cfg == dict(mode="whole")
        assert (decode.channels, auxiliary.in_index) == (512, 3)
    assert cfg.model.backbone == {**own, **options}


@pytest.mark.parametrize("model", ["vim-tiny", "vim-small", "local-vim-tiny"])
def test_rates_and_decay_of_segmentors(load, model):
    model_of_cfg, values = groups_of(load(f"{model}_upernet_4xb4-160k_ade20k-512x512"))
    parameters = dict(model_of_cfg.named_parameters())
    _, rate, decay, layer_decay = SEGMENTORS[model]
    for name, (lr, acts) in values.items():
        first = name.startswith(("backbone.patch_embed.", "backbone.pos_embed"))
        factor = layer_decay**25 if layer_decay and first else 1
        assert lr == pytest.approx(rate * factor), name
        if layer_decay:
            spared = parameters[name].ndim == 1 or name.endswith((".bias", ".dt_projs_bias"))
        else:
            spared = "norm" in name or name == "backbone.pos_embed"
        assert acts == (0 if spared else decay), name


@pytest.mark.parametrize(("arch", "rate"), [("tiny", 2e-4), ("small", 1e-4)])
def test_published_schedule_of_vims_segmentors(load, arch, rate, learning_rates):
    cfg = load(f"vim-{arch}_upernet_4xb8-60k_ade20k-512x512")
    usual = load(f"vim-{arch}_upernet_4xb4-160k_ade20k-512x512")
    assert cfg.model == usual.model
    assert cfg.optim_wrapper.paramwise_cfg == usual.optim_wrapper.paramwise_cfg
    assert adamw(cfg) == (rate, SEGMENTORS[f"vim-{arch}"][2])
    assert cfg.train_dataloader.batch_size * 4 == cfg.auto_scale_lr.base_batch_size == 32
    assert cfg.train_cfg.max_iters == 60000
    rates = learning_rates(cfg, EPOCH, [0, 1500])
    assert rates == pytest.approx({0: rate * 1e-6, 1500: rate})
    assert cfg.param_scheduler[1] == dict(usual.param_scheduler[1], end=60000)
    assert usual.param_scheduler[1].end == 160000


def test_nothing_is_downloaded(root, load):
    """No address of weights is left of the configs that ours inherit."""
    for path in (root / "configs").glob("*vim/*.py"):
        assert "http" not in str(load(path.stem).to_dict()), path.name
