"""Cases of plain backbones in further forms than the given ones, and their options."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmvssm.checkpoint import map_state_dict
from mmvssm.models import LocalVMamba, Vim
from verifier import (
    READERS,
    Case,
    MalformedCase,
    UnsupportedCase,
    fill_value,
    make_input,
    verify_file,
)

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {
    "vim": GOLDEN / "vim" / "vim_tiny__64x96.json",
    "seg": GOLDEN / "vim" / "vim_tiny_seg__96x96.json",
    "det": GOLDEN / "vim" / "vim_tiny_det__96x96.json",
    "local": GOLDEN / "local_mamba" / "local_vim_tiny__64x96__vfix.json",
    "tokens": GOLDEN / "local_mamba" / "local_vim_tiny_middle_cls_token__80x80.json",
    "local_vmamba": GOLDEN / "local_mamba" / "local_vssm_tiny__64x96__vfix.json",
}


def model_of(name, task, **options):
    """Build a small network from a case's description, with other options."""
    case = Case(CASES[name])
    case.meta["build"].update(embed_dim=16, depth=2, d_state=2, dt_rank=1, num_classes=5)
    case.meta["build"].update(out_indices=[0, 1], img_size=32)
    if name == "local":
        case.meta["build"]["directions"] = case.meta["build"]["directions"][:2]
    case.meta["build"].update(options)
    return READERS[case.meta["family"]](case).build(task).eval()


def test_options_reach_the_backbone():
    options = dict(depth=3, d_state=4, expand=1, dt_rank=3, d_conv=2, stride=4, img_size=[32, 48])
    backbone = model_of("vim", "classification", **options, channels=1).backbone
    mixer = backbone.layers[2].mixer
    assert (mixer.d_state, mixer.dt_rank, mixer.num_routes, mixer.mean) == (4, 3, 2, True)
    assert mixer.conv1d.weight.shape == (32, 1, 2)
    assert backbone.positions.grid == (5, 9) and backbone.in_channels == 1
    assert backbone.positions.used_cls_place == "middle" and backbone.rope is None
    head = dict(use_middle_cls_token=False, if_rope=True, if_rope_residual=True)
    backbone = model_of("vim", "classification", **head, if_divide_out=False).backbone
    assert backbone.positions.used_cls_place == "head" and backbone.rope is not None
    assert not backbone.layers[0].mixer.mean
    double = dict(use_double_cls_token=True, bimamba_type="none", rms_norm=False)
    backbone = model_of("vim", "classification", **double).backbone
    assert (
        backbone.positions.used_cls_place == "double" and backbone.layers[0].mixer.num_routes == 1
    )
    assert isinstance(backbone.layers[0].norm, torch.nn.LayerNorm)
    assert model_of("vim", "dense", **double).backbone.positions.used_cls_place == "none"
    without = dict(if_abs_pos_embed=False, if_cls_token=False)
    backbone = model_of("vim", "classification", **without, in_chans=2).backbone
    assert backbone.pos_embed is None and backbone.in_channels == 2


@pytest.mark.parametrize(
    ("pool", "pooled", "logits"),
    [
        ("mean", (2, 16), (2, 5)),
        ("none", (2, 16), (2, 5)),
        ("all", (2, 4, 16), (2, 4, 5)),
        ("max", (2, 4, 16), (2, 5)),
    ],
)
def test_final_pools(pool, pooled, logits):
    model = model_of("vim", "classification", if_cls_token=False, final_pool_type=pool)
    outputs = model(torch.randn(2, 3, 32, 32))
    assert outputs["pooled"].shape == pooled and outputs["logits"].shape == logits
    if pool == "max":
        torch.testing.assert_close(outputs["logits"], model.head["fc"](outputs["pooled"]).amax(1))


@pytest.mark.parametrize(
    ("options", "features"),
    [
        (dict(), ["mixer"] * 4),
        (dict(last_layer_process="add"), ["mixer"] * 4),
        (dict(use_residual_as_feature=True), ["residual"] * 3 + ["mixer"]),
        (dict(use_residual_as_feature=True, last_layer_process="add"), ["residual"] * 4),
    ],
)
def test_features_of_segmentors(options, features):
    options = dict(options, depth=4, out_indices=[0, 1, 2, 3])
    model = model_of("seg", "dense", **options)
    assert list(model.backbone.features) == features
    sides = dict(stage0=4, stage1=4, stage2=4, stage3=4, fpn0=16, fpn1=8, fpn2=4, fpn3=2)
    maps = model(torch.randn(1, 3, 64, 64))
    assert {k: x.shape for k, x in maps.items()} == {k: (1, 16, n, n) for k, n in sides.items()}
    plain = model_of("seg", "dense", **options, if_fpn=False)
    assert plain(torch.randn(1, 3, 64, 64)).keys() == {f"stage{k}" for k in range(4)}


def test_features_of_detectors_and_local_vim():
    model = model_of("det", "dense", fpn_out_channels=8)
    assert model.backbone.features == ("residual",) and model.backbone.out_indices == (1,)
    assert model_of("det", "dense", last_layer_process="none").backbone.features == ("mixer",)
    maps = model_of("local", "dense")(torch.randn(1, 3, 32, 48))
    assert [(k, x.shape) for k, x in maps.items()] == [
        ("stage0", (1, 16, 2, 3)),
        ("stage1", (1, 16, 2, 3)),
    ]
    tokens = dict(if_cls_token=True, use_middle_cls_token=True, if_rope=False)
    model = model_of("local", "dense", **tokens, if_rope_residual=False)
    assert model(torch.randn(1, 3, 32, 32))["tokens1"].shape == (1, 5, 16)
    search = model_of("local", "classification", directions=None, v_reverse="upstream")
    mixer = search.backbone.layers[1].mixer
    assert (mixer.num_routes, len(mixer.merge.weights)) == (8, 8)
    assert mixer.scan.build.output_order == "upstream"


@pytest.mark.parametrize(
    ("case", "task", "options", "error", "message"),
    [
        ("vim", "classification", dict(norm_epsilon=1e-6), UnsupportedCase, "1e-06: only 1e-05"),
        ("vim", "classification", dict(init_layer_scale=0.1), UnsupportedCase, "0.1: only None"),
        ("vim", "classification", dict(if_bidirectional=True), UnsupportedCase, "if_bidirectional"),
        ("vim", "classification", dict(bimamba_type="v1"), UnsupportedCase, "bimamba_type 'v1'"),
        ("vim", "classification", dict(if_rope=True), UnsupportedCase, "if_rope_residual differs"),
        (
            *("vim", "classification"),
            dict(if_rope=True, if_rope_residual=True, img_size=[32, 48]),
            *(UnsupportedCase, r"img_size \[32, 48\]: .*square"),
        ),
        ("det", "dense", dict(last_layer_process="add & norm"), UnsupportedCase, "detectors"),
        ("seg", "dense", dict(patch_size=4), UnsupportedCase, "if_fpn.*patches of 16 or 8"),
        ("seg", "dense", dict(out_indices=[0, 1]), UnsupportedCase, "if_fpn.*four maps"),
        ("det", "dense", dict(fpn_scales=[2.0, 1.0]), UnsupportedCase, "fpn_scales"),
        ("local", "classification", dict(pt_hw_seq_len=16), UnsupportedCase, "16: only 14"),
        ("vim", "classification", dict(bimamba_type="v3"), MalformedCase, "one of v2, none"),
        (
            *("vim", "classification", dict(final_pool_type="sum", if_cls_token=False)),
            *(MalformedCase, "final_pool_type must be one of mean"),
        ),
        ("seg", "dense", dict(last_layer_process="mul"), MalformedCase, "must be one of none"),
        ("local", "classification", dict(v_reverse="no"), MalformedCase, "must be one of inverse"),
    ],
)
def test_refused(case, task, options, error, message):
    with pytest.raises(error, match=message):
        model_of(case, task, **options)


def verify(tmp_path, meta, outputs, **data):
    """Verify a case that stores all values of some outputs."""
    for name, value in outputs.items():
        data |= {name: value.detach().numpy().reshape(-1), f"{name}.shape": np.array(value.shape)}
        data[f"{name}.index"] = np.arange(value.numel())
    meta["outputs"] = list(outputs) or meta["outputs"]
    (tmp_path / "case.json").write_text(json.dumps(meta))
    np.savez(tmp_path / "case.npz", **data)
    (result,) = verify_file(tmp_path / "case.json", "auto")
    return result


def maps_of(meta, backbone, family):
    """Return maps of a backbone before output norms, and the weights of the case."""
    weights = {entry[0]: torch.from_numpy(fill_value(*entry)) for entry in meta["state_dict"]}
    keys = ("patch_embed.", "pos_embed", "rope.", "layers.")
    own = {key: value for key, value in weights.items() if key.startswith(keys)}
    mapped = map_state_dict(own, family, "dense")
    backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in mapped.items()})
    with torch.no_grad():
        maps = backbone.eval()(torch.from_numpy(make_input(meta["input_shape"])))
    return list(maps), weights


def segmentor(patch_size=16, **options):
    """A case of four layers on a grid of 6 x 6, its maps before the last norm, its weights."""
    meta = Case(CASES["seg"]).meta
    meta["build"].update(depth=4, out_indices=[0, 1, 2, 3], **options)
    kept = ("patch_embed.", "pos_embed", "norm_f", "fpn", *(f"layers.{i}." for i in range(4)))
    if patch_size == 8:  # a pyramid of one layer with weights
        meta["build"].update(patch_size=8, stride=8, img_size=48)
        kept = ("patch_embed.proj.b", *kept[1:3], *kept[4:])
        shapes = {"patch_embed.proj.weight": [192, 3, 8, 8], "fpn1.0.weight": [192, 192, 2, 2]}
        shapes["fpn1.0.bias"] = [192]
        meta["input_shape"] = [2, 3, 48, 48]
    meta["state_dict"] = [entry for entry in meta["state_dict"] if entry[0].startswith(kept)]
    if patch_size == 8:
        meta["state_dict"] += [[key, shape, "float32"] for key, shape in shapes.items()]
    rope = meta["build"]["if_rope"]
    if rope:
        tables = ("rope.freqs_cos", "rope.freqs_sin")
        meta["state_dict"] += [[key, [36, 192], "float32"] for key in tables]
    residual = meta["build"]["use_residual_as_feature"]
    backbone = Vim(
        dict(embed_dims=192, num_layers=4, patch_size=patch_size, cls_token="none", rope=rope),
        img_size=meta["build"]["img_size"],
        out_type="featmap",
        out_norm=False,
        out_indices=(0, 1, 2, 3),
        feature="residual" if residual else "mixer",
    )
    return meta, *maps_of(meta, backbone, "vim")


def upsample(x, weights, name):
    return F.conv_transpose2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2)


def rms_norm(x, weight):
    """Norm of the channels of a map ``(B, C, H, W)``; torch has one since 2.4."""
    return x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight[:, None, None]


def test_the_last_norm_after_the_last_sum(tmp_path):
    options = dict(use_residual_as_feature=True, last_layer_process="add & norm")
    meta, maps, weights = segmentor(**options)
    scale = weights["norm_f.weight"].requires_grad_()
    maps[3] = rms_norm(maps[3], scale)
    names = ("running_mean", "running_var", "weight", "bias")
    x = F.batch_norm(upsample(maps[0], weights, "fpn1.0"), *(weights[f"fpn1.1.{n}"] for n in names))
    outputs = {f"stage{k}": x for k, x in enumerate(maps)}
    outputs["fpn0"] = upsample(F.gelu(x), weights, "fpn1.3")
    outputs |= dict(fpn1=upsample(maps[1], weights, "fpn2.0"), fpn2=maps[2])
    outputs["fpn3"] = F.max_pool2d(maps[3], 2)
    (maps[3] * torch.from_numpy(make_input(maps[3].shape, "cotangent"))).sum().backward()
    norms = {"gradnorm.keys": ["norm_f.weight"], "gradnorm.values": [scale.grad.norm().item()]}
    result = verify(tmp_path, meta, outputs, **norms)
    assert result.status == "passed" and "of 9 compared" in result.detail, result
    meta["build"]["last_layer_process"] = "add"
    result = verify(tmp_path, meta, outputs)
    assert result.status == "failed" and result.detail.startswith("worst")


def test_the_pyramid_of_patches_of_8(tmp_path):
    meta, maps, weights = segmentor(patch_size=8)
    outputs = {f"stage{k}": x for k, x in enumerate(maps)}
    outputs |= dict(fpn0=upsample(maps[0], weights, "fpn1.0"), fpn1=maps[1])
    outputs |= dict(fpn2=F.max_pool2d(maps[2], 2), fpn3=F.max_pool2d(maps[3], 4))
    result = verify(tmp_path, meta, outputs)
    assert result.status == "passed" and "of 8 compared" in result.detail, result


def test_both_with_a_rotary_embedding(tmp_path):
    """Sums before the last are rotated once more."""
    options = dict(if_rope=True, if_rope_residual=True)
    options |= dict(use_residual_as_feature=True, last_layer_process="add & norm")
    meta, maps, weights = segmentor(patch_size=8, **options)
    norm = rms_norm(maps[3], weights["norm_f.weight"])
    outputs = dict(stage0=maps[0], stage3=norm)
    outputs |= dict(fpn0=upsample(maps[0], weights, "fpn1.0"))
    assert verify(tmp_path, meta, outputs).status == "passed"


@pytest.mark.parametrize("name", ["seg", "tokens"])
def test_options_left_out_and_without_effect(tmp_path, name):
    case = Case(CASES[name])
    del case.meta["build"]["out_indices"]
    # mixers' outputs get no norm, whatever the last sum gets; norms of tokens are not stored
    case.meta["build"]["last_layer_process"] = "add & norm"
    case.meta["state_dict"] = [e for e in case.meta["state_dict"] if "outnorm_" not in e[0]]
    assert verify(tmp_path, case.meta, {}, **case.data).status == "passed"


@pytest.mark.parametrize("stages", [(1, 3), (2, 0), (1,)])
def test_some_stages_of_local_vmamba(tmp_path, stages):
    meta = Case(CASES["local_vmamba"]).meta
    directions = meta["build"]["directions"][:4]
    meta["build"].update(depths=[1] * 4, directions=directions, out_indices=stages, in_chans=1)
    first = tuple(f"layers.{i}.{part}" for i in range(4) for part in ("blocks.0.", "downsample."))
    kept = ("patch_embed.", *(f"outnorm{i}." for i in stages), *first)
    meta["state_dict"] = [e for e in meta["state_dict"] if e[0].startswith(kept)]
    dict((e[0], e) for e in meta["state_dict"])["patch_embed.0.weight"][1] = [96, 1, 4, 4]
    meta["input_shape"] = [1, 1, 32, 48]
    arch = dict(embed_dims=96, depths=(1, 1, 1, 1))
    backbone = LocalVMamba(arch, directions, in_channels=1, out_norm=False)
    maps, weights = maps_of(meta, backbone, "local_vmamba")
    outputs = {}
    for i in stages:
        norm = (weights[f"outnorm{i}.weight"], weights[f"outnorm{i}.bias"])
        x = F.layer_norm(maps[i].permute(0, 2, 3, 1), norm[0].shape, *norm, 1e-5)
        outputs[f"stage{i}"] = x.permute(0, 3, 1, 2)
    assert verify(tmp_path, meta, outputs).status == "passed"
    spec = READERS["local_mamba"](Case(tmp_path / "case.json"))
    assert spec.build("classification").backbone.out_indices == (3,)
