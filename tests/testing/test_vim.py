"""Descriptions of Vim and LocalVim: what they say reaches the model, and which are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from mmvssm.testing.compare import MalformedCase, UnsupportedCase
from mmvssm.testing.families import READERS
from mmvssm.testing.golden import verify_file

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {
    "vim": GOLDEN / "vim" / "vim_tiny__64x96.json",
    "seg": GOLDEN / "vim" / "vim_tiny_seg__96x96.json",
    "det": GOLDEN / "vim" / "vim_tiny_det__96x96.json",
    "local": GOLDEN / "local_mamba" / "local_vim_tiny__64x96__vfix.json",
}


def model_of(case, task, **changes):
    """A small network as a case describes its own, with changes."""
    meta = json.loads(CASES[case].read_text())
    build = dict(meta["build"], embed_dim=16, depth=2, d_state=2, dt_rank=1, num_classes=5)
    build.update(out_indices=[0, 1], img_size=32)
    if case == "local":
        build["directions"] = build["directions"][:2]
    build.update(changes)
    return READERS[meta["family"]](build).build(task).eval()


def test_words_reach_the_backbone():
    words = dict(depth=3, d_state=4, expand=1, dt_rank=3, d_conv=2, stride=4, img_size=[32, 48])
    backbone = model_of("vim", "classification", **words, channels=1).backbone
    mixer = backbone.layers[2].mixer
    assert (mixer.d_state, mixer.dt_rank, mixer.num_routes, mixer.mean) == (4, 3, 2, True)
    assert mixer.conv1d.weight.shape == (32, 1, 2)
    assert backbone.grid == (5, 9) and backbone.in_channels == 1
    assert backbone.used_cls_place == "middle" and backbone.rope is None
    head = dict(use_middle_cls_token=False, if_rope=True, if_rope_residual=True)
    backbone = model_of("vim", "classification", **head, if_divide_out=False).backbone
    assert backbone.used_cls_place == "head" and backbone.rope is not None
    assert not backbone.layers[0].mixer.mean
    double = dict(use_double_cls_token=True, bimamba_type="none", rms_norm=False)
    backbone = model_of("vim", "classification", **double).backbone
    assert backbone.used_cls_place == "double" and backbone.layers[0].mixer.num_routes == 1
    assert isinstance(backbone.layers[0].norm, nn.LayerNorm)
    assert model_of("vim", "dense", **double).backbone.used_cls_place == "none"
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
    ("words", "features"),
    [
        (dict(), ["mixer"] * 4),
        (dict(last_layer_process="add"), ["mixer"] * 4),
        (dict(use_residual_as_feature=True), ["residual"] * 3 + ["mixer"]),
        (dict(use_residual_as_feature=True, last_layer_process="add"), ["residual"] * 4),
    ],
)
def test_features_of_segmentors(words, features):
    words = dict(words, depth=4, out_indices=[0, 1, 2, 3])
    model = model_of("seg", "dense", **words)
    assert list(model.backbone.features) == features
    maps = model(torch.randn(1, 3, 64, 64))
    sides = dict(stage0=4, stage1=4, stage2=4, stage3=4, fpn0=16, fpn1=8, fpn2=4, fpn3=2)
    assert {name: tuple(out.shape) for name, out in maps.items()} == {
        name: (1, 16, side, side) for name, side in sides.items()
    }
    plain = model_of("seg", "dense", **words, if_fpn=False)
    assert plain(torch.randn(1, 3, 64, 64)).keys() == {f"stage{k}" for k in range(4)}


def test_features_of_detectors():
    model = model_of("det", "dense", fpn_out_channels=8)
    assert model.backbone.features == ("residual",) and model.backbone.out_indices == (1,)
    model = model_of("det", "dense", last_layer_process="none")
    assert model.backbone.features == ("mixer",)


def test_local_vim_with_and_without_class_token():
    maps = model_of("local", "dense")(torch.randn(1, 3, 32, 48))
    assert {name: tuple(out.shape) for name, out in maps.items()} == {
        "stage0": (1, 16, 2, 3),
        "stage1": (1, 16, 2, 3),
    }
    words = dict(if_cls_token=True, use_middle_cls_token=True, if_rope=False)
    model = model_of("local", "dense", **words, if_rope_residual=False)
    assert model(torch.randn(1, 3, 32, 32))["tokens1"].shape == (1, 5, 16)
    search = model_of("local", "classification", directions=None, v_reverse="upstream")
    mixer = search.backbone.layers[1].mixer
    assert (
        mixer.num_routes == 8 and mixer.output_order == "upstream" and len(mixer.merge.weights) == 8
    )


@pytest.mark.parametrize(
    ("case", "task", "words", "message"),
    [
        ("vim", "classification", dict(norm_epsilon=1e-6), "norm_epsilon 1e-06: only 1e-05"),
        ("vim", "classification", dict(init_layer_scale=0.1), "init_layer_scale 0.1: only None"),
        ("vim", "classification", dict(if_bidirectional=True), "if_bidirectional True"),
        ("vim", "classification", dict(bimamba_type="v1"), "bimamba_type 'v1'"),
        ("vim", "classification", dict(if_rope=True), "if_rope_residual differs"),
        (
            "vim",
            "classification",
            dict(if_rope=True, if_rope_residual=True, img_size=[32, 48]),
            r"img_size \[32, 48\]: .*square",
        ),
        ("det", "dense", dict(last_layer_process="add & norm"), "add & norm.*detectors"),
        ("seg", "dense", dict(patch_size=4), "if_fpn.*patches of 16 or 8"),
        ("seg", "dense", dict(out_indices=[0, 1]), "if_fpn.*four maps"),
        ("det", "dense", dict(fpn_scales=[2.0, 1.0]), "fpn_scales"),
        ("local", "classification", dict(pt_hw_seq_len=16), "pt_hw_seq_len 16: only 14"),
    ],
)
def test_refused(case, task, words, message):
    with pytest.raises(UnsupportedCase, match=message):
        model_of(case, task, **words)


@pytest.mark.parametrize(
    ("case", "task", "words", "message"),
    [
        ("vim", "classification", dict(bimamba_type="v3"), "bimamba_type must be one of v2, none"),
        (
            "vim",
            "classification",
            dict(final_pool_type="sum", if_cls_token=False),
            "final_pool_type must be one of mean",
        ),
        ("seg", "dense", dict(last_layer_process="mul"), "last_layer_process must be one of none"),
        ("local", "classification", dict(v_reverse="no"), "v_reverse must be one of inverse"),
    ],
)
def test_malformed(case, task, words, message):
    with pytest.raises(MalformedCase, match=message):
        model_of(case, task, **words)


def test_a_wrong_description_fails(tmp_path):
    """The comparison sees that the directions are not divided by two."""
    meta = json.loads(CASES["det"].read_text())
    meta["build"]["if_divide_out"] = False
    (tmp_path / "case.json").write_text(json.dumps(meta))
    shutil.copy(CASES["det"].with_suffix(".npz"), tmp_path / "case.npz")
    (result,) = verify_file(tmp_path / "case.json", "auto")
    assert result.status == "failed" and "worst" in result.detail
