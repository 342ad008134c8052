"""Layer-wise learning rates in models of the three libraries."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmvssm.engine import LayerDecayOptimWrapperConstructor
from mmvssm.models import LocalVim, Vim

RATE, LAYERS = 0.5, 4
ARCH = dict(embed_dims=16, num_layers=LAYERS, patch_size=8, mixer=dict(d_state=2))
HEAD = dict(type="FCNHead", in_channels=16, channels=8, num_classes=3, in_index=0)
RPN = dict(
    type="RPNHead",
    in_channels=8,
    feat_channels=8,
    anchor_generator=dict(type="AnchorGenerator", scales=[8], ratios=[1.0], strides=[8, 16, 32]),
    bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
)
TASKS = {
    "mmpretrain": dict(
        type="ImageClassifier",
        backbone=dict(type="mmvssm.Vim", arch=ARCH, img_size=32),
        head=dict(type="LinearClsHead", num_classes=10, in_channels=16),
    ),
    "mmdet": dict(
        type="RPN",
        backbone=dict(type="mmvssm.LocalVim", arch=ARCH, img_size=32, out_type="featmap"),
        neck=dict(
            type="mmvssm.SimpleFeaturePyramid",
            in_channels=16,
            out_channels=8,
            scales=(2, 1, 0.5),
            num_outs=3,
        ),
        rpn_head=RPN,
        train_cfg=dict(rpn=None),
        test_cfg=dict(rpn=None),
    ),
    "mmseg": dict(
        type="EncoderDecoder",
        backbone=dict(
            type="mmvssm.Vim", arch=ARCH, img_size=32, out_type="featmap", out_indices=(1, 3)
        ),
        neck=dict(type="Feature2Pyramid", embed_dim=16, rescales=[2, 1], norm_cfg=dict(type="BN")),
        decode_head=HEAD,
    ),
}


def groups_of(model, **paramwise):
    """Return the optimizer's group of every parameter, by name."""
    options = dict(
        type="OptimWrapper",
        constructor="mmvssm.LayerDecayOptimWrapperConstructor",
        optimizer=dict(type="AdamW", lr=0.1, weight_decay=0.2),
        paramwise_cfg=dict(layer_decay_rate=RATE, **paramwise),
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optim_wrapper(model, options).optimizer.param_groups
    return {names[id(parameter)]: group for group in groups for parameter in group["params"]}


@pytest.fixture(params=TASKS)
def model(request):
    init_default_scope(request.param)
    return MODELS.build(TASKS[request.param])


def test_factors(model):
    groups = groups_of(model)
    parameters = dict(model.named_parameters())
    assert groups.keys() == parameters.keys()
    depths = {"patch_embed": 0, "pos_embed": 0, "cls_token": 0}
    counts = dict.fromkeys(range(LAYERS + 2), 0)
    for name, group in groups.items():
        part, *rest = name.split(".")
        depth = LAYERS + 1
        if part == "backbone":
            depth = int(rest[1]) + 1 if rest[0] == "layers" else depths.get(rest[0], depth)
        counts[depth] += 1
        factor = {0: 1 / 32, 1: 1 / 16, 2: 1 / 8, 3: 1 / 4, 4: 1 / 2, 5: 1}[depth]
        assert (group["lr"], group["lr_scale"]) == (pytest.approx(0.1 * factor), factor), name
        assert group["param_name"] == name and group["weight_decay"] == 0.2
    assert counts[0] == 3 + ("backbone.cls_token" in parameters)
    assert counts[1] == counts[2] == counts[3] == counts[4] >= 10
    assert {"backbone.norm0.weight"} < {name for name in groups if groups[name]["lr"] == 0.1}


def test_the_rules_of_mmengine_hold(model):
    keys = {
        "pos_embed": dict(decay_mult=0.0),
        "cls_token": dict(decay_mult=0.0),
        "layers.2": dict(lr_mult=3.0),
    }
    mults = dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0)
    groups = groups_of(model, **mults, custom_keys=keys)
    for name, parameter in model.named_parameters():
        group = groups[name]
        if "layers.2" in name:
            assert group["weight_decay"] == 0.2
            assert group["lr"] == pytest.approx(0.1 * 3 / 4)
            continue
        tables = name in ("backbone.pos_embed", "backbone.cls_token")
        spared = tables or parameter.ndim == 1 or name.endswith(".bias")
        assert group["weight_decay"] == (0 if spared else 0.2), name
    assert groups["backbone.layers.1.mixer.A_logs"]["lr"] == pytest.approx(0.1 / 8)


@pytest.mark.parametrize("backbone", [Vim, LocalVim])
def test_mmpretrains_own_constructor_sees_the_same_depths(backbone):
    """Our backbones also tell their depths to the library's constructor."""
    init_default_scope("mmpretrain")
    options = dict(TASKS["mmpretrain"], backbone=dict(type=backbone, arch=ARCH, img_size=32))
    model = MODELS.build(options)
    ours = groups_of(model)
    cfg = dict(optimizer=dict(type="AdamW", lr=0.1, weight_decay=0.2))
    cfg["constructor"] = "LearningRateDecayOptimWrapperConstructor"
    cfg["paramwise_cfg"] = dict(layer_decay_rate=RATE)
    theirs = build_optim_wrapper(model, cfg).optimizer.param_groups
    assert {group["param_name"]: group["lr"] for group in theirs} == {
        name: group["lr"] for name, group in ours.items()
    }


def test_compiled_parts_keep_their_depths():
    model = nn.Module()
    model.backbone = Vim(ARCH, img_size=32)
    expected = {name: group["lr"] for name, group in groups_of(model).items()}
    model.backbone.layers[2] = torch.compile(model.backbone.layers[2])
    model.backbone = torch.compile(model.backbone)
    assert "backbone._orig_mod.layers.2._orig_mod.norm.weight" in dict(model.named_parameters())
    groups = groups_of(model).values()
    assert {group["param_name"]: group["lr"] for group in groups} == expected


def test_frozen_parameters_are_left_out():
    model = nn.Module()
    model.backbone = Vim(ARCH, img_size=32, frozen_stages=1)
    groups = groups_of(model)
    assert min(group["lr_scale"] for group in groups.values()) == 1 / 4
    assert all(not name.startswith(("backbone.layers.1", "backbone.patch")) for name in groups)


@pytest.mark.parametrize("rate", [None, 0, 1.5])
def test_bad_rate(rate):
    with pytest.raises(ValueError, match=f"layer_decay_rate, above 0 and at most 1, got {rate}"):
        LayerDecayOptimWrapperConstructor(
            dict(optimizer=dict(type="SGD", lr=1)), dict(layer_decay_rate=rate)
        )


def test_backbone_without_depths():
    model = nn.Module()
    model.backbone = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match="get_layer_depth, got Module with backbone Linear"):
        groups_of(model)
