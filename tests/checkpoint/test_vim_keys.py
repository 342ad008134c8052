"""Names of the plain backbones' parameters in files of their authors."""

from dataclasses import replace

import pytest
import torch

from mmvssm.checkpoint import map_key, map_state_dict
from mmvssm.families import FAMILIES
from mmvssm.families.layers import plain_dense
from mmvssm.families.pyramids import FEATURE2PYRAMID_OF_8
from mmvssm.models import LocalVim, Vim

MICRO = dict(embed_dims=8, num_layers=2, patch_size=8)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("cls_token", "cls_token"),
        ("pos_embed", "pos_embed"),
        ("patch_embed.proj.weight", "patch_embed.conv1.weight"),
        ("rope.freqs_cos", "rope.freqs_cos"),
        ("layers.3.norm.bias", "layers.3.norm.bias"),
        ("layers.3.mixer.in_proj.weight", "layers.3.mixer.in_proj.weight"),
        ("layers.3.mixer.out_proj.weight", "layers.3.mixer.out_proj.weight"),
    ],
)
def test_both(key, expected):
    for family in ("vim", "local_vim"):
        for task in ("classification", "dense"):
            assert map_key(key, family, task) == f"backbone.{expected}"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("net.layers.11.norm.weight", "layers.11.norm.weight"),
        ("cls_token_head", "cls_token@0"),
        ("cls_token_tail", "cls_token@1"),
        ("layers.3.mixer.A_log", "layers.3.mixer.A_logs@0"),
        ("layers.3.mixer.A_b_log", "layers.3.mixer.A_logs@1"),
        ("layers.3.mixer.D", "layers.3.mixer.Ds@0"),
        ("layers.3.mixer.D_b", "layers.3.mixer.Ds@1"),
        ("layers.3.mixer.conv1d.weight", "layers.3.mixer.conv1d.weight@0"),
        ("layers.3.mixer.conv1d_b.bias", "layers.3.mixer.conv1d.bias@1"),
        ("layers.3.mixer.x_proj.weight", "layers.3.mixer.x_proj_weight@0"),
        ("layers.3.mixer.x_proj_b.weight", "layers.3.mixer.x_proj_weight@1"),
        ("layers.3.mixer.dt_proj.bias", "layers.3.mixer.dt_projs_bias@0"),
        ("layers.3.mixer.dt_proj_b.weight", "layers.3.mixer.dt_projs_weight@1"),
    ],
)
def test_vim(key, expected):
    assert map_key(key, "vim", "dense") == f"backbone.{expected}"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("layers.3.mixer.A_log_2", "layers.3.mixer.A_logs@2"),
        ("layers.3.mixer.D_7", "layers.3.mixer.Ds@7"),
        ("layers.3.mixer.conv1d_1.weight", "layers.3.mixer.conv1d.weight@1"),
        ("layers.3.mixer.conv1d_0.bias", "layers.3.mixer.conv1d.bias@0"),
        ("layers.3.mixer.x_proj_3.weight", "layers.3.mixer.x_proj_weight@3"),
        ("layers.3.mixer.dt_proj_3.weight", "layers.3.mixer.dt_projs_weight@3"),
        ("layers.3.mixer.dt_proj_0.bias", "layers.3.mixer.dt_projs_bias@0"),
        ("layers.3.mixer.attn.norm.weight", "layers.3.mixer.merge.attn.norm.weight"),
        ("layers.3.mixer.multi_scan.weights", "layers.3.mixer.merge.weights"),
    ],
)
def test_local_vim(key, expected):
    assert map_key(key, "local_vim", "dense") == f"backbone.{expected}"


@pytest.mark.parametrize(
    ("key", "classification", "dense"),
    [
        ("norm_f.weight", "backbone.norm0.weight", None),
        ("head.bias", "head.fc.bias", None),
        ("outnorm_3.bias", None, "backbone.norm3.bias"),
    ],
)
def test_norms_and_heads(key, classification, dense):
    for family in ("vim", "local_vim"):
        assert map_key(key, family, "classification") == classification
        assert map_key(key, family, "dense") == dense


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("fpn1.3.weight", "neck.upsample_4x.3.weight"),
        ("fpn2.0.bias", "neck.upsample_2x.0.bias"),
        ("simfp_2.1.bias", "neck.levels.x4.deconv_norm.bias"),
        ("simfp_3.2.norm.bias", "neck.levels.x2.norm2.bias"),
        ("simfp_5.1.weight", "neck.levels.x0_5.conv1.weight"),
    ],
)
def test_pyramids_inside_of_vim(key, expected):
    assert map_key(key, "vim", "dense") == expected


def test_a_detector_of_vim():
    """Its backbone holds the network as ``net``, and the pyramid beside it."""
    value = torch.ones(4)
    names = {
        "backbone.net.layers.0.norm.weight": "backbone.layers.0.norm.weight",
        "backbone.net.rope.freqs_cos": "backbone.rope.freqs_cos",
        "backbone.simfp_4.0.norm.weight": "neck.levels.x1.norm1.weight",
        "roi_heads.box_head.conv1.norm.weight": "roi_heads.box_head.conv1.norm.weight",
    }
    mapped = map_state_dict(dict.fromkeys(names, value), "vim", "dense")
    assert list(mapped) == list(names.values())


def test_a_detector_of_local_vim():
    """Its pyramid is a neck, with norms of a class without a short name; so are its heads'."""
    value = torch.ones(4)
    names = {
        "backbone.outnorm_0.weight": "backbone.norm0.weight",
        "neck.fpn1.0.weight": "neck.levels.x4.deconv1.weight",
        "neck.fpn1.1.weight": "neck.levels.x4.deconv_norm.weight",
        "neck.fpn1.3.bias": "neck.levels.x4.deconv2.bias",
        "neck.fpn2.0.bias": "neck.levels.x2.deconv1.bias",
        "neck.lateral_convs.0.conv.weight": "neck.levels.x4.conv1.weight",
        "neck.lateral_convs.3.norm_layer.bias": "neck.levels.x0_5.norm1.bias",
        "neck.fpn_convs.1.conv.weight": "neck.levels.x2.conv2.weight",
        "neck.fpn_convs.2.norm_layer.weight": "neck.levels.x1.norm2.weight",
        "roi_head.mask_head.convs.0.norm_layer.bias": "roi_head.mask_head.convs.0.ln.bias",
    }
    mapped = map_state_dict(dict.fromkeys(names, value), "local_vim", "dense")
    assert list(mapped) == list(names.values())


def test_other_necks_of_local_vim_stay():
    names = ["backbone.norm0.weight", "neck.lateral_convs.0.conv.weight"]
    mapped = map_state_dict(dict.fromkeys(names, torch.ones(4)), "local_vim", "dense")
    assert list(mapped) == names


def test_rules_of_one_form():
    """A key map may be given in place of a family's name."""
    dense = plain_dense(final_norm="norm2", out_norms=False, pyramid=FEATURE2PYRAMID_OF_8)
    key_map = replace(FAMILIES["vim"], tasks={"dense": dense})
    assert map_key("norm_f.weight", key_map, "dense") == "backbone.norm2.weight"
    assert map_key("outnorm_0.weight", key_map, "dense") is None
    assert map_key("fpn1.0.bias", key_map, "dense") == "neck.upsample_2x.0.bias"
    value = torch.ones(4)
    mapped = map_state_dict({"layers.0.mixer.D": value, "head.bias": value}, key_map, "dense")
    assert mapped.keys() == {"backbone.layers.0.mixer.Ds"}


@pytest.mark.parametrize(
    ("family", "backbone", "options"),
    [
        ("vim", Vim, dict(cls_token="double", rope=True)),
        ("local_vim", LocalVim, dict(directions="search", cls_token="middle")),
    ],
)
@pytest.mark.parametrize("task", ["classification", "dense"])
def test_own_names_and_values_stay(family, backbone, options, task):
    values = backbone(MICRO, img_size=32, **options).state_dict(prefix="backbone.")
    mapped = map_state_dict(values, family, task)
    assert mapped.keys() == values.keys()
    assert all(torch.equal(mapped[key], value) for key, value in values.items())


def test_the_backward_scan_comes_second():
    forward, backward = torch.randn(16, 2), torch.randn(16, 2)
    names = {"A_b_log": backward, "A_log": forward}
    names |= {"dt_proj_b.weight": backward, "dt_proj.weight": forward}
    mapped = map_state_dict({f"layers.0.mixer.{k}": v for k, v in names.items()}, "vim")
    decays = mapped["backbone.layers.0.mixer.A_logs"]
    assert torch.equal(decays, torch.cat([forward, backward]))
    steps = mapped["backbone.layers.0.mixer.dt_projs_weight"]
    assert torch.equal(steps, torch.stack([forward, backward]))


def test_a_missing_direction():
    parts = {f"layers.0.mixer.D_{i}": torch.ones(4) for i in (0, 1, 3)}
    with pytest.raises(ValueError, match=r"backbone.layers.0.mixer.Ds is incomplete: part 2 of it"):
        map_state_dict(parts, "local_vim")
    # numbers of a file are no sizes
    with pytest.raises(ValueError, match=r"part 0 of it is missing"):
        map_state_dict({"layers.0.mixer.D_99999999999": torch.ones(4)}, "local_vim")
