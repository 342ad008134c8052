"""Weights go back to the names and parts of the original projects; what they lack is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmvssm.checkpoint import KeyMap, map_state_dict
from mmvssm.families import FAMILIES
from mmvssm.families.key_map import release_names
from mmvssm.families.layers import plain_dense
from mmvssm.families.pyramids import FEATURE2PYRAMID_OF_8
from mmvssm.models import (
    EfficientVMamba,
    LocalVim,
    LocalVMamba,
    MSVMamba,
    SimpleFeaturePyramid,
    Vim,
    VMamba,
)

GOLDEN = Path(__file__).parents[1] / "golden"
LISTS = sorted(GOLDEN.glob("*/keys/*.json"))
HIERARCHICAL = ("vmamba", "efficient_vmamba", "msvmamba", "local_vmamba")
#: What only classifiers have, in the names of all releases.
CLASSIFIER = ("classifier.", "norm.", "head.", "norm_f.", "cls_token")


def family_of(path):
    folder = path.relative_to(GOLDEN).parts[0]
    if folder != "local_mamba":
        return folder
    return "local_vim" if "local_vim" in path.stem else "local_vmamba"


def read(path):
    """Tensors without values, as a file of the list has them."""
    listing = json.loads(path.read_text())["state_dict"]
    return {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for key, shape, dtype in listing
    }


def filled(tensors):
    """Random tensors of the same keys and types, no side of them longer than 2."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randint(2**20, [min(side, 2) for side in value.shape], generator=generator).to(
            value.dtype
        )
        for key, value in tensors.items()
    }


def kinds(tensors):
    return {key: (value.shape, value.dtype) for key, value in tensors.items()}


def assert_equal(tensors, expected):
    assert kinds(tensors) == kinds(expected)
    assert all(torch.equal(tensors[key], value) for key, value in expected.items())


def unmap_state_dict(weights, family, task="classification", names="current"):
    return KeyMap(family, task).to_original(weights, names=names)


def there_and_back(released, family, task):
    names = release_names(released, FAMILIES[family])
    return unmap_state_dict(map_state_dict(released, family, task), family, task, names=names)


by_list = pytest.mark.parametrize(
    "path", LISTS, ids=[f"{path.parts[-3]}-{path.stem}" for path in LISTS]
)


@by_list
def test_classifiers(path):
    """Keys, shapes, types and values of every list come back as they were."""
    released, family = read(path), family_of(path)
    is_old = path.stem in ("vmambav0_tiny", "vmambav0_small", "vmambav0_base")
    assert release_names(released, FAMILIES[family]) == ("first-release" if is_old else "current")
    assert kinds(there_and_back(released, family, "classification")) == kinds(released)
    values = filled(released)
    assert_equal(there_and_back(values, family, "classification"), values)


@by_list
def test_detectors_and_segmentors(path):
    """The backbone is called the same behind its prefix; heads and necks of the library stay."""
    released, family = read(path), family_of(path)
    dense = {key: value for key, value in released.items() if not key.startswith(CLASSIFIER)}
    out_norm = {"local_vim": "outnorm_{}", "vim": None}.get(family, "outnorm{}")
    if out_norm is not None:
        for i in (0, 1, 3):
            dense |= {f"{out_norm.format(i)}.{p}": torch.empty(4) for p in ("weight", "bias")}
    dense = {f"backbone.{key}": value for key, value in dense.items()}
    heads = "neck.lateral_convs.0.conv.weight", "decode_head.norm.weight", "roi_head.mlp.fc1.bias"
    dense |= dict.fromkeys(heads, torch.empty(4))
    values = filled(dense)
    assert_equal(there_and_back(values, family, "dense"), values)


def golden(name):
    """A golden case of Vim's dense forms, as a file of a whole model has it."""
    released = {f"backbone.{key}": value for key, value in read(GOLDEN / "vim" / name).items()}
    return filled({key: value for key, value in released.items() if ".norm_f." not in key})


def test_detector_of_vim():
    released = golden("vim_tiny_det__96x96.json") | {"roi_heads.mask_head.norm.bias": torch.ones(2)}
    ours = map_state_dict(released, "vim", "dense")
    assert {"backbone.layers.0.mixer.A_logs", "neck.levels.x4.deconv_norm.bias"} <= ours.keys()
    assert_equal(unmap_state_dict(ours, "vim", "dense"), released)


def test_segmentor_of_vim():
    released = golden("vim_tiny_seg__96x96.json") | {"decode_head.conv_seg.bias": torch.ones(2)}
    ours = map_state_dict(released, "vim", "dense")
    assert {"neck.upsample_4x.1.running_var", "neck.upsample_2x.0.bias"} <= ours.keys()
    assert_equal(unmap_state_dict(ours, "vim", "dense"), released)


def test_forms_of_one_case():
    """A key map in place of a family: patches of 8, and outputs that pass the last norm."""
    rules = plain_dense(final_norm="norm3", pyramid=FEATURE2PYRAMID_OF_8)
    key_map = replace(FAMILIES["vim"], tasks={"dense": rules})
    values = {"backbone.norm_f.weight": torch.ones(4), "backbone.fpn1.0.bias": torch.zeros(4)}
    ours = map_state_dict(values, key_map, "dense")
    assert list(ours) == ["backbone.norm3.weight", "neck.upsample_2x.0.bias"]
    assert_equal(unmap_state_dict(ours, key_map, "dense"), values)


@pytest.mark.parametrize("family", ["vim", "local_vim"])
@pytest.mark.parametrize("names", [["cls_token"], ["cls_token_head", "cls_token_tail"]])
def test_class_tokens_of_dense_forms(family, names):
    """A backbone of tokens keeps its class token, and both of two."""
    released = {f"backbone.{name}": torch.randn(1, 1, 4) for name in names}
    ours = map_state_dict(released, family, "dense")
    assert list(ours) == ["backbone.cls_token"]
    assert ours["backbone.cls_token"].shape == (len(names), 1, 4)
    assert_equal(unmap_state_dict(ours, family, "dense"), released)


def test_detector_of_local_vim():
    """The project's pyramid has one name for each of ours, and its heads name norms as it does."""
    neck = SimpleFeaturePyramid(8, 4).state_dict(prefix="neck.")
    backbone = micro(LocalVim, "local_vim").state_dict(prefix="backbone.")
    ours = {**backbone, **neck, "roi_head.bbox_head.shared_convs.0.ln.bias": torch.randn(4)}
    back = unmap_state_dict(ours, "local_vim", "dense")
    assert {key.split(".")[1] for key in back if key.startswith("neck.")} == {
        *("fpn1", "fpn2", "lateral_convs", "fpn_convs")
    }
    assert "neck.lateral_convs.3.norm_layer.weight" in back
    assert "roi_head.bbox_head.shared_convs.0.norm_layer.bias" in back
    assert_equal(map_state_dict(back, "local_vim", "dense"), ours)


PLAIN = dict(embed_dims=8, num_layers=2, patch_size=8)
STAGES = dict(embed_dims=8, depths=(1, 1, 2, 1))
#: A class, its family and what differs from a small network of it.
MODELS = [
    (VMamba, "vmamba", {}),
    (VMamba, "vmamba", dict(downsample="patch_merge", stem="patch", mixer=dict(gate=True))),
    (VMamba, "vmamba", dict(mixer=dict(type="ScalarDecaySS2D", conv_bias=True, ssm_init="v2"))),
    (VMamba, "vmamba", dict(mixer=dict(out_norm="dwconv3"))),
    (VMamba, "vmamba", dict(mixer=dict(out_norm="cnorm"))),
    (VMamba, "vmamba", dict(mixer=dict(out_norm="sigmoid"), norm="bn", pos_embed=True)),
    (VMamba, "vmamba", dict(mixer=None)),
    (EfficientVMamba, "efficient_vmamba", dict(mlp_ratio=2)),
    (EfficientVMamba, "efficient_vmamba", dict(downsample="conv2")),
    (MSVMamba, "msvmamba", {}),
    (LocalVMamba, "local_vmamba", {}),
    (Vim, "vim", dict(cls_token="none", rope=True)),
    (Vim, "vim", dict(cls_token="double")),
    (Vim, "vim", dict(bidirectional=False)),
    (LocalVim, "local_vim", {}),
]


def micro(model, family, **options):
    """A small network with one output, whose weights are random."""
    if family in ("vim", "local_vim"):
        network = model({**PLAIN, **options}, img_size=32, out_indices=1)
    else:
        network = model({**STAGES, **options}, out_indices=3)
    for value in network.state_dict().values():
        value.copy_(torch.randint(2**20, value.shape))
    return network


@pytest.mark.parametrize(
    ("model", "family", "options", "names"),
    [
        (*case, names)
        for case in MODELS
        for names in ("current", "first-release")
        if names == "current" or case[1] in HIERARCHICAL
    ],
)
def test_our_models(model, family, options, names):
    """Every weight of ours comes back, whatever the options of the network and the names."""
    ours = micro(model, family, **options).state_dict(prefix="backbone.")
    ours |= {"head.fc.weight": torch.randn(5, 8), "head.fc.bias": torch.randn(5)}
    back = unmap_state_dict(ours, family, names=names)
    assert not any(key.startswith(("backbone.", "head.fc.")) for key in back)
    assert release_names(back, FAMILIES[family]) == names
    assert_equal(map_state_dict(back, family), ours)


def test_search_networks():
    networks = [
        (LocalVMamba(STAGES, directions="search", out_indices=3), "local_vmamba"),
        (LocalVim(PLAIN, img_size=32, directions="search"), "local_vim"),
    ]
    for network, family in networks:
        ours = network.state_dict(prefix="backbone.")
        back = unmap_state_dict(ours, family)
        assert any(key.endswith(".multi_scan.weights") for key in back)
        assert_equal(map_state_dict(back, family), ours)


def unmapped(ours, family="vmamba", task="dense", **options):
    """Their names for keys of ours, in this order, and nothing of values."""
    values = {key: torch.zeros(4) for key in ours}
    return list(unmap_state_dict(values, family, task, **options))


def test_names_that_depend_on_neighbours():
    stage = "backbone.stages.0"
    merging = [f"{stage}.downsample.norm.weight", f"{stage}.downsample.reduction.weight"]
    assert unmapped(merging) == [
        "backbone.layers.0.downsample.norm.weight",
        "backbone.layers.0.downsample.reduction.weight",
    ]
    convolution = [f"{stage}.downsample.norm.weight", f"{stage}.downsample.conv.weight"]
    assert unmapped(convolution) == [
        "backbone.layers.0.downsample.3.weight",
        "backbone.layers.0.downsample.1.weight",
    ]
    mixer = f"{stage}.blocks.0.mixer"
    assert unmapped([f"{mixer}.conv2d.weight"]) == ["backbone.layers.0.blocks.0.op.conv2d.1.weight"]
    assert unmapped([f"{mixer}.conv2d.weight", f"{mixer}.dt_projs_weight"])[0] == (
        "backbone.layers.0.blocks.0.op.conv2d.weight"
    )
    assert unmapped([f"{mixer}.out_norm.weight", f"{mixer}.out_norm.bias"])[0] == (
        "backbone.layers.0.blocks.0.op.out_norm.weight"
    )
    assert unmapped([f"{mixer}.out_norm.weight"]) == [
        "backbone.layers.0.blocks.0.op.out_norm.1.weight"
    ]


@pytest.mark.parametrize("depth", [4, 9])
def test_flat_stages(depth):
    """The downsampling stands two behind the last block, as a change of layout is in between."""
    blocks = [f"backbone.stages.2.blocks.{j}.expand.weight" for j in range(depth)]
    back = unmapped([*blocks, "backbone.stages.2.downsample.norm.bias"], "efficient_vmamba")
    assert back[0] == "backbone.layers.2.1.conv_pw.0.weight"
    assert back[-1] == f"backbone.layers.2.{depth + 2}.norm.bias"


def test_first_release_names():
    ours = {
        "backbone.patch_embed.conv1.weight": "patch_embed.proj.weight",
        "backbone.patch_embed.norm1.weight": "patch_embed.norm.weight",
        "backbone.stages.1.blocks.0.norm1.bias": "layers.1.blocks.0.ln_1.bias",
        "backbone.stages.1.blocks.0.norm2.bias": "layers.1.blocks.0.norm2.bias",
        "backbone.stages.1.blocks.0.mixer.Ds": "layers.1.blocks.0.self_attention.Ds",
        "backbone.stages.1.downsample.norm.bias": "layers.1.downsample.norm.bias",
    }
    classifier = {**ours, "backbone.norm3.bias": "norm.bias", "head.fc.bias": "head.bias"}
    back = unmapped(classifier, task="classification", names="first-release")
    assert back == list(classifier.values())
    dense = {**ours, "backbone.norm3.bias": "outnorm3.bias"}
    back = unmapped(dense, names="first-release")
    assert back == [f"backbone.{key}" for key in dense.values()]
    assert release_names([*back, "neck.norm.weight"], FAMILIES["vmamba"]) == "first-release"


def test_heads_do_not_tell_the_names():
    keys = ["backbone.layers.0.blocks.0.norm.bias", "norm.bias", "head.bias"]
    assert release_names(keys, FAMILIES["vmamba"]) == "current"


def test_archs_of_the_first_release_exist():
    assert set(FAMILIES["vmamba"].first_release_archs) == {
        name for name in VMamba.arch_settings if name.startswith("v0")
    }


@pytest.mark.parametrize(
    ("family", "classifier", "dense"),
    [
        ("vmamba", {"model"}, {"state_dict"}),
        ("efficient_vmamba", {"state_dict"}, {"state_dict"}),
        ("msvmamba", {"model", "model_ema"}, {"state_dict"}),
        ("local_vmamba", {"state_dict"}, {"state_dict"}),
        ("local_vim", {"state_dict"}, {"state_dict"}),
        ("vim", {"model"}, {"state_dict", "model"}),
    ],
)
def test_containers(family, classifier, dense):
    assert set(FAMILIES[family].container) == classifier
    assert set(FAMILIES[family].dense_container) == dense


def test_parts_are_tensors_of_their_own():
    """Parts are contiguous and share no memory; whole tensors are not copied."""
    ours = micro(Vim, "vim").state_dict(prefix="backbone.")
    back = unmap_state_dict(ours, "vim")
    first = back["layers.0.mixer.A_log"]
    assert torch.equal(first, ours["backbone.layers.0.mixer.A_logs"][:16])
    assert torch.equal(back["layers.0.mixer.A_b_log"], ours["backbone.layers.0.mixer.A_logs"][16:])
    assert torch.equal(
        back["layers.0.mixer.dt_proj_b.bias"], ours["backbone.layers.0.mixer.dt_projs_bias"][1]
    )
    parts = [value for key, value in back.items() if key.endswith(("_log", "_proj.weight"))]
    assert len(parts) > 4
    assert all(value.is_contiguous() for value in parts)
    assert first.untyped_storage().nbytes() == first.nbytes
    assert back["layers.1.norm.weight"] is ours["backbone.layers.1.norm.weight"]
    storages = [value.untyped_storage().data_ptr() for value in back.values()]
    assert len(set(storages)) == len(storages)


@pytest.mark.parametrize(
    ("ours", "family", "task", "message"),
    [
        (["norm3.weight"], "vmamba", "dense", "no key begins with 'backbone.'"),
        (["backbone.norm3.bias"], "resnet", "dense", "family must be one of efficient_vmamba"),
        (["backbone.norm3.bias"], "vmamba", "detection", "task must be one of classification"),
        (
            ["backbone.norm1.bias", "backbone.norm3.bias"],
            "vmamba",
            "classification",
            "no place for backbone.norm1.bias in its models for 'classification'",
        ),
        (
            ["backbone.norm3.bias", "decode_head.conv.weight"],
            "vmamba",
            "classification",
            "no place for decode_head.conv.weight",
        ),
        (
            ["backbone.norm0.weight", "backbone.norm1.weight"],
            "local_vim",
            "classification",
            "no place for backbone.norm1.weight",
        ),
        (["backbone.norm0.weight"], "vim", "dense", "no place for backbone.norm0.weight"),
        (
            ["backbone.pos_embed", "neck.levels.x0_25.conv1.weight"],
            "vim",
            "dense",
            "no place for neck.levels.x0_25.conv1.weight",
        ),
        (
            ["backbone.norm0.bias", "neck.levels.x2.deconv1.weight"],
            "local_vim",
            "dense",
            "no place for neck.levels.x2.deconv1.weight",
        ),
        (
            ["backbone.pos_embed", "neck.upsample_2x.0.weight"],
            "vim",
            "dense",
            "no place for neck.upsample_2x.0.weight",
        ),
        (["backbone.layers.0.mixer.Ds"], "vim", "dense", "has no x_proj_weight of three axes"),
        (
            ["backbone.layers.0.mixer.conv2d.bias"],
            "vmamba",
            "dense",
            "backbone.layers.0.mixer.conv2d.bias, .* would not be the same when read again",
        ),
    ],
)
def test_what_has_no_way_back(ours, family, task, message):
    with pytest.raises(ValueError, match=message):
        unmapped(ours, family, task)


def test_all_that_is_foreign_is_named():
    with pytest.raises(ValueError, match=r"a.0, .*a.7 and 3 more in its models"):
        unmapped(["backbone.norm3.bias", *(f"a.{i}" for i in range(11))], task="classification")


@pytest.mark.parametrize("family", ["vim", "local_vim"])
def test_plain_families_have_one_naming(family):
    with pytest.raises(ValueError, match="names must be 'current' for this family"):
        unmapped(["backbone.pos_embed"], family, names="first-release")
    with pytest.raises(ValueError, match="names must be one of current, first-release, got 'old'"):
        unmapped(["backbone.pos_embed"], family, names="old")


def test_four_scans_are_not_vims():
    """LocalVim has as many scans as it likes, Vim two at most."""
    ours = micro(LocalVim, "local_vim").state_dict(prefix="backbone.")
    ours = {key: value for key, value in ours.items() if ".merge." not in key}
    with pytest.raises(ValueError, match=r"no place for backbone\.layers\.0\.mixer\."):
        unmap_state_dict(ours, "vim")


def test_a_tensor_that_does_not_split():
    mixer = "backbone.layers.0.mixer"
    ours = {f"{mixer}.x_proj_weight": torch.zeros(2, 3, 4), f"{mixer}.Ds": torch.zeros(5)}
    with pytest.raises(ValueError, match=r"mixer.Ds of shape \(5,\) cannot be split for 2 scans"):
        unmap_state_dict(ours, "vim")


def test_other_forms_of_released_files():
    """What is read besides current files is written as these have it."""
    block = "layers.0.blocks.0.op"
    nightly = {f"{block}.out_norm.weight": torch.randn(4, 1, 3, 3)}
    assert list(there_and_back(nightly, "vmamba", "classification")) == [
        f"{block}.out_norm.1.weight"
    ]
    pointwise = {f"{block}.in_proj.weight": torch.randn(4, 2, 1, 1)}
    (weight,) = there_and_back(pointwise, "vmamba", "classification").values()
    assert torch.equal(weight, pointwise[f"{block}.in_proj.weight"][..., 0, 0])
