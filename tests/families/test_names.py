"""Weight names outside the lists of keys, our models in every form, and one-way names."""

from dataclasses import replace

import pytest
import torch

from mmvssm.checkpoint import KeyMap, map_key, map_state_dict
from mmvssm.families import FAMILIES, register_family
from mmvssm.families.key_map import TASKS, release_names
from mmvssm.models import SimpleFeaturePyramid, Vim, VMamba
from mmvssm.models.backbones.plain import PlainBackbone
from verifier import Case

from .test_released import GOLDEN, kinds

#: Families based on the code of VMamba, whose names changed once.
HIERARCHICAL = ("vmamba", "efficient_vmamba", "msvmamba", "local_vmamba")
PLAIN = dict(embed_dims=8, num_layers=2, patch_size=8)
STAGES = dict(embed_dims=8, depths=(1, 1, 2, 1))


def original(weights, family, task="classification", names="current"):
    return KeyMap(family, task).to_original(weights, names=names)


def unmapped(ours, family="vmamba", task="dense", **options):
    """Return the original names of our keys, in this order, without the values."""
    return list(original({key: torch.zeros(4) for key in ours}, family, task, **options))


def assert_equal(tensors, expected):
    assert kinds(tensors) == kinds(expected)
    assert all(torch.equal(tensors[key], value) for key, value in expected.items())


def micro(family, **options):
    """A small network with one output, whose weights are random."""
    backbone = FAMILIES[family].backbone
    if issubclass(backbone, PlainBackbone):
        network = backbone({**PLAIN, **options}, img_size=32, out_indices=1)
    else:
        network = backbone({**STAGES, **options}, out_indices=3)
    for value in network.state_dict().values():
        value.copy_(torch.randint(2**20, value.shape))
    weights = network.state_dict(prefix="backbone.")
    weights.pop("backbone.pos_grid", None)  # not a weight, and not in files of the authors
    return weights


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("vmamba", {}),
        ("vmamba", dict(downsample="patch_merge", stem="patch", mixer=dict(gate=True))),
        ("vmamba", dict(mixer=dict(type="ScalarDecaySS2D", conv_bias=True, ssm_init="v2"))),
        ("vmamba", dict(mixer=dict(out_norm="dwconv3"))),
        ("vmamba", dict(mixer=dict(out_norm="cnorm"))),
        ("vmamba", dict(mixer=dict(out_norm="sigmoid"), norm="bn", pos_embed=True)),
        ("vmamba", dict(mixer=None)),
        ("efficient_vmamba", dict(mlp_ratio=2)),
        ("efficient_vmamba", dict(downsample="conv2")),
        ("msvmamba", {}),
        ("local_vmamba", {}),
        ("local_vmamba", dict(directions="search")),
        ("vim", dict(cls_token="none", rope=True)),
        ("vim", dict(cls_token="double")),
        ("vim", dict(bidirectional=False)),
        ("local_vim", {}),
        ("local_vim", dict(directions="search")),
        ("mambavision", {}),
        ("mambavision", dict(layer_scale=1e-5, conv_layer_scale=1e-5)),
    ],
)
def test_our_models(family, options):
    """Our names stay, and every weight comes back from all names of the original project."""
    ours = micro(family, **options)
    for task in TASKS:
        assert_equal(map_state_dict(ours, family, task), ours)
    ours |= {"head.fc.weight": torch.randn(5, 8), "head.fc.bias": torch.randn(5)}
    for names in ("current", "first-release")[: 1 + (family in HIERARCHICAL)]:
        back = original(ours, family, names=names)
        assert not any(key.startswith(("backbone.", "head.fc.")) for key in back)
        assert release_names(back, FAMILIES[family]) == names
        assert_equal(map_state_dict(back, family), ours)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_old", [False, True])
def test_norms_and_heads(family, is_old):
    """Classifiers have no norms of outputs, dense models no norm and head of classifiers."""
    keys, last = ["classifier.norm.bias", "classifier.head.bias", "outnorm2.bias"], 3
    if family == "mambavision":
        keys = ["norm.bias", "head.bias", "outnorm2.bias"]
    elif family not in HIERARCHICAL:
        keys, last = ["norm_f.bias", "head.bias", "outnorm_2.bias"], 0
    elif is_old:
        keys[:2] = ["norm.bias", "head.bias"]
    classifier, dense = ([map_key(key, family, task) for key in keys] for task in TASKS)
    assert classifier == [f"backbone.norm{last}.bias", "head.fc.bias", None]
    assert dense == [None, None, "backbone.norm2.bias"]


#: Names in complete detectors and segmentors: the original ones and ours.
FIRST_RELEASE = """
    backbone.patch_embed.proj.weight           backbone.patch_embed.conv1.weight
    backbone.patch_embed.norm.bias             backbone.patch_embed.norm1.bias
    backbone.layers.1.blocks.0.ln_1.bias       backbone.stages.1.blocks.0.norm1.bias
    backbone.layers.1.blocks.0.norm2.bias      backbone.stages.1.blocks.0.norm2.bias
    backbone.layers.1.blocks.0.self_attention.Ds    backbone.stages.1.blocks.0.{mixer}.Ds
    backbone.layers.1.downsample.norm.bias     backbone.stages.1.downsample.norm.bias
    backbone.outnorm2.weight                   backbone.norm2.weight
    norm.weight  norm.weight  decode_head.ln_1.bias  decode_head.ln_1.bias
    neck.layers.0.op.weight                    neck.layers.0.op.weight
"""
#: Its backbone holds the network as `net`, next to the pyramid.
VIM_DETECTOR = """
    backbone.net.layers.0.norm.weight          backbone.layers.0.norm.weight
    backbone.net.rope.freqs_cos                backbone.rope.freqs_cos
    backbone.simfp_2.1.bias                    neck.levels.x4.deconv_norm.bias
    backbone.simfp_3.2.norm.bias               neck.levels.x2.norm2.bias
    backbone.simfp_4.0.norm.weight             neck.levels.x1.norm1.weight
    backbone.simfp_5.1.weight                  neck.levels.x0_5.conv1.weight
    roi_heads.box_head.conv1.norm.weight       roi_heads.box_head.conv1.norm.weight
"""
VIM_SEGMENTOR = """
    backbone.layers.0.norm.weight              backbone.layers.0.norm.weight
    backbone.fpn1.0.weight                     neck.upsample_4x.0.weight
    backbone.fpn1.3.weight                     neck.upsample_4x.3.weight
    backbone.fpn2.0.bias                       neck.upsample_2x.0.bias
"""
#: Its pyramid is a neck, with norms of a class without a short name; so are its heads'.
LOCAL_VIM_DETECTOR = """
    backbone.outnorm_0.weight                  backbone.norm0.weight
    neck.fpn1.0.weight                         neck.levels.x4.deconv1.weight
    neck.fpn1.1.weight                         neck.levels.x4.deconv_norm.weight
    neck.fpn1.3.bias                           neck.levels.x4.deconv2.bias
    neck.fpn2.0.bias                           neck.levels.x2.deconv1.bias
    neck.lateral_convs.0.conv.weight           neck.levels.x4.conv1.weight
    neck.lateral_convs.3.norm_layer.bias       neck.levels.x0_5.norm1.bias
    neck.fpn_convs.1.conv.weight               neck.levels.x2.conv2.weight
    neck.fpn_convs.2.norm_layer.weight         neck.levels.x1.norm2.weight
    roi_head.mask_head.convs.0.norm_layer.bias    roi_head.mask_head.convs.0.ln.bias
"""
OTHER_NECK = """
    backbone.outnorm_0.weight                  backbone.norm0.weight
    neck.lateral_convs.0.conv.weight           neck.lateral_convs.0.conv.weight
"""


@pytest.mark.parametrize(
    ("family", "names", "keys"),
    [
        *((family, "first-release", FIRST_RELEASE) for family in HIERARCHICAL),
        ("vim", "current", VIM_DETECTOR),
        ("vim", "current", VIM_SEGMENTOR),
        ("local_vim", "current", LOCAL_VIM_DETECTOR),
        ("local_vim", "current", OTHER_NECK),
    ],
)
def test_whole_models(family, names, keys):
    """Only keys with the prefix are renamed: heads also have norms with such names."""
    keys = keys.format(mixer="mixer.ss2d" if family == "efficient_vmamba" else "mixer").split()
    theirs, ours = keys[::2], keys[1::2]
    assert list(map_state_dict(dict.fromkeys(theirs, torch.ones(4)), family, "dense")) == ours
    assert release_names(theirs, FAMILIES[family]) == names
    assert unmapped(ours, family, names=names) == theirs


@pytest.mark.parametrize(
    ("name", "head"),
    [("det", "roi_heads.mask_head.norm.bias"), ("seg", "decode_head.conv_seg.bias")],
)
def test_pyramids_of_vim(name, head):
    """All keys of a golden dense form come back, except the last norm, which outputs do not use."""
    meta = Case(GOLDEN / f"vim/vim_tiny_{name}__96x96.json").meta["state_dict"]
    tensors = [
        (f"backbone.{key}", torch.rand([min(side, 2) for side in shape]).to(getattr(torch, dtype)))
        for key, shape, dtype in meta
        if "norm_f." not in key
    ]
    released = {**dict(tensors), head: torch.ones(2)}
    ours = map_state_dict(released, "vim", "dense")
    assert any(key.startswith("neck.") for key in ours) and head in ours
    assert_equal(original(ours, "vim", "dense"), released)


def test_pyramid_of_local_vim():
    """The project's pyramid has one name for each of ours."""
    ours = micro("local_vim") | SimpleFeaturePyramid(8, 4).state_dict(prefix="neck.")
    back = original(ours, "local_vim", "dense")
    parts = {key.split(".")[1] for key in back if key.startswith("neck.")}
    assert parts == {"fpn1", "fpn2", "lateral_convs", "fpn_convs"}
    assert_equal(map_state_dict(back, "local_vim", "dense"), ours)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (["downsample.norm.weight", "downsample.reduction.weight"], "downsample.norm.weight"),
        (["downsample.norm.weight", "downsample.conv.weight"], "downsample.3.weight"),
        (["blocks.0.mixer.conv2d.weight"], "blocks.0.op.conv2d.1.weight"),
        (
            ["blocks.0.mixer.conv2d.weight", "blocks.0.mixer.dt_projs_weight"],
            "blocks.0.op.conv2d.weight",
        ),
        (["blocks.0.mixer.out_norm.weight"], "blocks.0.op.out_norm.1.weight"),
        (
            ["blocks.0.mixer.out_norm.weight", "blocks.0.mixer.out_norm.bias"],
            "blocks.0.op.out_norm.weight",
        ),
    ],
)
def test_names_that_depend_on_neighbours(ours, theirs):
    back = unmapped([f"backbone.stages.0.{key}" for key in ours])
    assert back[0] == f"backbone.layers.0.{theirs}"


@pytest.mark.parametrize("depth", [4, 9])
def test_flat_stages(depth):
    """The downsampling is two places after the last block, with a change of layout in between."""
    blocks = [f"backbone.stages.2.blocks.{j}.expand.weight" for j in range(depth)]
    back = unmapped([*blocks, "backbone.stages.2.downsample.norm.bias"], "efficient_vmamba")
    assert back[0] == "backbone.layers.2.1.conv_pw.0.weight"
    assert back[-1] == f"backbone.layers.2.{depth + 2}.norm.bias"


@pytest.mark.parametrize(
    ("family", "linear", "convolutions"),
    [
        ("vmamba", ("op.in_proj", "mlp.fc1"), ("op.conv2d",)),
        # the layers of the feed-forward are convolutions here, too
        (
            "msvmamba",
            ("op.in_proj", "op.out_proj", "op.se.fc.0", "op.se.fc.2"),
            ("convFFN.linear1",),
        ),
    ],
)
def test_linear_weights_held_as_convolutions(family, linear, convolutions):
    """They go back in the shape that current files have."""
    block = "layers.0.blocks.0"
    released = {f"{block}.{n}.weight": torch.randn(6, 4, 1, 1) for n in (*linear, *convolutions)}
    mapped = map_state_dict(released, family)
    expected = [value[..., 0, 0] for value in released.values()][: len(linear)]
    expected += list(released.values())[len(linear) :]
    assert all(torch.equal(*pair) for pair in zip(mapped.values(), expected, strict=True))
    # nightly files of VMamba have a depthwise convolution without the number of current ones
    nightly = {f"{block}.op.out_norm.weight": torch.randn(4, 1, 3, 3)}
    mapped = map_state_dict(nightly, family)
    assert list(mapped) == ["backbone.stages.0.blocks.0.mixer.out_norm.weight"]
    assert list(original(mapped, family)) == [f"{block}.op.out_norm.1.weight"]


def test_heads_do_not_tell_the_names():
    keys = ["backbone.layers.0.blocks.0.norm.bias", "norm.bias", "head.bias"]
    assert release_names(keys, FAMILIES["vmamba"]) == "current"


# Tensors in parts


@pytest.mark.parametrize("family", ["vim", "local_vim"])
@pytest.mark.parametrize("names", [["cls_token"], ["cls_token_head", "cls_token_tail"]])
def test_class_tokens_of_dense_forms(family, names):
    """A backbone of tokens keeps its class token, or both if it has two."""
    released = {f"backbone.{name}": torch.randn(1, 1, 4) for name in names}
    ours = map_state_dict(released, family, "dense")
    assert_equal(ours, {"backbone.cls_token": torch.cat(list(released.values()))})
    assert_equal(original(ours, family, "dense"), released)


@pytest.mark.parametrize(("family", "suffixes"), [("vim", ("", "_b")), ("local_vim", ("_0", "_1"))])
def test_order_of_scans(family, suffixes):
    """Whatever the order in the file; Vim's backward scan comes second."""
    parts = torch.randn(2, 16, 2)
    released = {}
    for part, suffix in reversed(list(zip(parts, suffixes))):
        decay = f"A{suffix}_log" if family == "vim" else f"A_log{suffix}"
        released |= {f"layers.0.mixer.{decay}": part}
        released |= {f"layers.0.mixer.dt_proj{suffix}.weight": part}
    mapped = map_state_dict(released, family)
    assert torch.equal(mapped["backbone.layers.0.mixer.A_logs"], parts.flatten(0, 1))
    assert torch.equal(mapped["backbone.layers.0.mixer.dt_projs_weight"], parts)


def test_parts_are_tensors_of_their_own():
    """Parts are contiguous and share no memory; whole tensors are not copied."""
    ours = micro("vim")
    back = original(ours, "vim")
    parts = [value for key, value in back.items() if key.endswith(("_log", "_proj.weight"))]
    assert len(parts) > 4
    for value in parts:
        assert value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes
    assert back["layers.1.norm.weight"] is ours["backbone.layers.1.norm.weight"]
    storages = [value.untyped_storage().data_ptr() for value in back.values()]
    assert len(set(storages)) == len(storages)


# What users see


def test_declarations():
    assert set(FAMILIES["vmamba"].first_release_archs) == {
        name for name in VMamba.arch_settings if name.startswith("v0")
    }
    containers = {f.name: (set(f.container), set(f.dense_container)) for f in FAMILIES.values()}
    assert containers == {
        "vmamba": ({"model"}, {"state_dict"}),
        "efficient_vmamba": ({"state_dict"}, {"state_dict"}),
        "msvmamba": ({"model", "model_ema"}, {"state_dict"}),
        "local_vmamba": ({"state_dict"}, {"state_dict"}),
        "local_vim": ({"state_dict"}, {"state_dict"}),
        "vim": ({"model"}, {"state_dict", "model"}),
        "mambavision": ({"state_dict"}, {"state_dict"}),
    }
    with pytest.raises(ValueError, match="'vmamba' of VMamba is already declared"):
        register_family(replace(FAMILIES["vmamba"], name="other"))
    with pytest.raises(ValueError, match="must have a unique name and class"):
        register_family(replace(FAMILIES["vmamba"], backbone=Vim))


@pytest.mark.parametrize(
    ("keys", "family", "message"),
    [
        (
            ["layers.0.blocks.0.ln_1.b", "layers.0.blocks.0.norm.b"],
            "vmamba",
            r"keys .*ln_1.b and .*norm.b are both",
        ),
        ([f"layers.0.mixer.D_{i}" for i in (0, 1, 3)], "local_vim", "Ds is incomplete: part 2 of"),
        # numbers in a file are not sizes
        (["layers.0.mixer.D_99999999999"], "local_vim", "part 0 of it is missing"),
        (["a"], "resnet", r"family must be one of efficient_vmamba, .*got 'resnet'"),
    ],
)
def test_what_cannot_be_read(keys, family, message):
    with pytest.raises(ValueError, match=message):
        map_state_dict({key: torch.ones(4) for key in keys}, family)


@pytest.mark.parametrize(
    ("keys", "family", "task", "message"),
    [
        ("norm3.weight", "vmamba", "dense", "no key begins with 'backbone.'"),
        ("backbone.norm3.bias", "vmamba", "det", "task must be one of classification, dense, got"),
        (
            "backbone.D backbone.norm1.bias",
            "vmamba",
            "classification",
            "no counterpart of backbone.norm1.bias",
        ),
        (
            "backbone.norm3.bias " + " ".join(f"a.{i}" for i in range(11)),
            "vmamba",
            "classification",
            "models for 'classification' have no counterpart of a.0, .*a.7 and 3 more",
        ),
        ("backbone.norm0.bias backbone.norm1.bias", "local_vim", "classification", "norm1.bias"),
        ("backbone.norm0.weight", "vim", "dense", "no counterpart of backbone.norm0.weight"),
        (
            "backbone.D neck.levels.x0_25.conv1.bias",
            "vim",
            "dense",
            "counterpart of neck.levels.x0_25.conv1",
        ),
        ("backbone.D neck.levels.x2.deconv1.bias", "local_vim", "dense", "neck.levels.x2.deconv1"),
        ("backbone.D neck.upsample_2x.0.bias", "vim", "dense", "no counterpart of neck.upsample"),
        ("backbone.layers.0.mixer.Ds", "vim", "dense", "has no x_proj_weight with three axes"),
        (
            "backbone.layers.0.D",
            "vmamba",
            "dense",
            "layers.0.D, .* would differ when read back",
        ),
    ],
)
def test_what_has_no_way_back(keys, family, task, message):
    with pytest.raises(ValueError, match=message):
        unmapped(keys.split(), family, task)


@pytest.mark.parametrize("family", ["vim", "local_vim", "mambavision"])
def test_families_of_one_naming(family):
    with pytest.raises(ValueError, match="names must be 'current' for this family"):
        unmapped(["backbone.pos_embed"], family, names="first-release")
    with pytest.raises(ValueError, match="names must be one of current, first-release, got 'old'"):
        unmapped(["backbone.pos_embed"], family, names="old")


def test_numbers_of_scans():
    """LocalVim may have any number of scans, Vim at most two."""
    ours = {key: value for key, value in micro("local_vim").items() if ".merge." not in key}
    with pytest.raises(ValueError, match=r"no counterpart of backbone\.layers\.0\.mixer\."):
        original(ours, "vim")
    mixer = "backbone.layers.0.mixer"
    ours = {f"{mixer}.x_proj_weight": torch.zeros(2, 3, 4), f"{mixer}.Ds": torch.zeros(5)}
    with pytest.raises(ValueError, match=r"mixer.Ds of shape \(5,\) cannot be split for 2 scans"):
        original(ours, "vim")
