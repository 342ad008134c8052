"""Families, archs and options are found from keys and shapes alone."""

import json
import random
import runpy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmvssm.checkpoint.arch.find import (
    TYPES,
    ArchError,
    Found,
    MixedFamiliesError,
    UnknownFamilyError,
    find_arch,
    find_family,
)
from mmvssm.checkpoint.arch.shapes import compare, ratio, shapes_of

import mmvssm.models
from mmvssm.checkpoint import KEY_MAPS, map_state_dict

TESTS = Path(__file__).parents[1]
#: Type and arch by list of keys, None for variants without a name.
LISTS = runpy.run_path(str(TESTS / "checkpoint/test_released_keys.py"))["LISTS"]
DEMOS = sorted((TESTS.parent / "configs/demo").glob("*.py"))
MICRO = dict(embed_dims=16, depths=(1, 1, 1, 1))
PLAIN = dict(embed_dims=16, num_layers=4)
FAMILIES = {kind: family for family, kind in TYPES.items()}


def released(name):
    folder, _, file = name.partition("/")
    listing = json.loads((TESTS / "golden" / folder / "keys" / f"{file}.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape, _ in listing["state_dict"]}


def backbone_shapes(kind, arch, **options):
    return Found(FAMILIES[kind], kind, arch, options).shapes()


def family_of(name):
    folder, _, file = name.partition("/")
    if folder == "local_mamba":
        return "local_vim" if file.startswith("local_vim") else "local_vmamba"
    return folder


@pytest.mark.parametrize("name", LISTS)
def test_released_lists(name):
    weights = released(name)
    family = find_family(weights)
    assert family == family_of(name)
    mapped = map_state_dict(weights, family)
    assert find_family(mapped) == family
    shapes = shapes_of(mapped)
    shapes = {k.removeprefix("backbone."): v for k, v in shapes.items() if k.startswith("backbone")}
    found = find_arch(shapes, family)
    assert found.shapes() == shapes
    assert found.family == family
    assert found.type == TYPES[family]
    if LISTS[name] is not None:
        kind, arch = LISTS[name]
        assert found.type == kind
        assert arch in (found.arch, *found.others)
        assert found.options == ({} if "vim" in family else dict(out_indices=(3,)))


@pytest.mark.parametrize("config", DEMOS, ids=lambda path: path.stem)
def test_demo_configs(config):
    backbone = Config.fromfile(config).model.backbone.to_dict()
    kind = backbone.pop("type").removeprefix("mmvssm.")
    shapes = backbone_shapes(kind, backbone.pop("arch"), **backbone)
    assert find_family(f"backbone.{key}" for key in shapes) == FAMILIES[kind]
    found = find_arch(shapes, FAMILIES[kind])
    assert found.shapes() == shapes
    named = find_arch(shapes, FAMILIES[kind], str(config))
    assert named.shapes() == shapes
    # all that shapes can tell is told: directions, layers of outputs and their form are not
    unseen = {"directions", "out_type", "drop_path_rate", "out_indices"}
    assert {k: v for k, v in named.options.items() if k not in unseen} == {
        k: v for k, v in found.options.items() if k not in unseen
    }
    if backbone.get("directions") == "search":
        assert "search" in (found.options.get("directions"), found.arch.get("directions"))


@pytest.mark.parametrize(
    ("kind", "arch", "options"),
    [
        ("VMamba", "tiny-s1l8", {}),
        ("VMamba", "v0-base", dict(out_norm=False)),
        ("VMamba", "v0-small", dict(out_indices=(1, 3))),
        ("VMamba", "base-s2l15", dict(in_channels=4)),
        ("EfficientVMamba", "small", dict(in_channels=1)),
        ("MSVMamba", "v3-base", {}),
        ("LocalVMamba", "small", {}),
        ("LocalVMamba", "tiny", dict(directions="search")),
        ("Vim", "tiny", dict(img_size=448)),
        ("Vim", "tiny-stride8", dict(img_size=512)),
        ("Vim", "small", dict(drop_cls_token=True, out_norm=False, img_size=1024)),
        ("Vim", "small", dict(out_indices=(5, 11, 17, 23), out_norm="ln")),
        ("Vim", "base", dict(cls_token="double", in_channels=6)),
        ("Vim", "base", dict(norm="ln", cls_token="none")),
        ("Vim", "tiny", dict(rope=True, divide_out=False, cls_token="head")),
        ("LocalVim", "tiny", dict(out_indices=(4, 9, 14, 19), out_norm="ln", img_size=512)),
        ("LocalVim", "tiny-mid-cls", dict(out_norm=False, drop_cls_token=True)),
        ("LocalVim", "tiny-search", {}),
        ("LocalVim", "small", dict(rope=False, directions="search")),
    ],
)
def test_options_of_named_archs(kind, arch, options):
    found = find_arch(backbone_shapes(kind, arch, **options), FAMILIES[kind])
    assert (found.arch, found.options) == (arch, options)


@pytest.mark.parametrize(
    ("kind", "arch", "options"),
    [
        ("VMamba", dict(MICRO, norm="bn", patch_norm=False, mlp_ratio=2.5), {}),
        ("VMamba", dict(MICRO, gated_mlp=True, downsample="conv2"), {}),
        ("VMamba", dict(MICRO, pos_embed=True), dict(img_size=(64, 128))),
        ("VMamba", dict(MICRO, pos_embed=True, mixer=None), {}),
        ("VMamba", dict(MICRO, mixer=dict(dt_rank=3, d_conv=5, conv_bias=True)), {}),
        ("VMamba", dict(MICRO, mixer=dict(d_conv=1, gate=True, d_state=4)), {}),
        ("VMamba", dict(MICRO, mixer=dict(out_norm="none", ssm_ratio=1.5)), {}),
        ("VMamba", dict(MICRO, mixer=dict(out_norm="cnorm")), {}),
        ("VMamba", dict(MICRO, mixer=dict(out_norm="dwconv3")), {}),
        ("VMamba", dict(MICRO, mixer=dict(scalar_decay=True, d_state=8, ssm_init="v2")), {}),
        (
            "VMamba",
            dict(embed_dims=(8, 24, 40), depths=(2, 0, 1), stem="patch", patch_size=2),
            dict(out_indices=(0, 1, 2)),
        ),
        (
            "EfficientVMamba",
            dict(MICRO, stage_types=["inverted_residual", "es2d", "es2d", "es2d"], mlp_ratio=3.0),
            {},
        ),
        ("EfficientVMamba", dict(MICRO, expand_ratio=3.0, se_ratio=0.25, stem="conv"), {}),
        ("MSVMamba", dict(MICRO, mlp_ratio=0.0, mixer=dict(d_state=2, small_conv=5)), {}),
        ("LocalVMamba", dict(MICRO, directions="search", mixer=dict(gate=False)), {}),
        ("Vim", dict(PLAIN, patch_size=8, stride=4, mixer=dict(d_state=8, d_conv=3)), {}),
        ("Vim", dict(PLAIN, pos_embed=False, bidirectional=False, cls_token="none"), {}),
        ("Vim", dict(PLAIN, patch_size=4, norm="ln"), dict(img_size=96, in_channels=1)),
        ("Vim", dict(PLAIN, mixer=dict(dt_rank=5, ssm_ratio=1.25)), {}),
        ("LocalVim", dict(PLAIN, directions="search", rope=False), dict(out_indices=(1, 3))),
        ("LocalVim", dict(PLAIN, pos_embed=False), dict(img_size=320)),
    ],
)
def test_fields_of_other_archs(kind, arch, options):
    found = find_arch(backbone_shapes(kind, arch, **options), FAMILIES[kind])
    assert (found.arch, found.options) == (arch, options)
    assert isinstance(found.build(), getattr(mmvssm.models, kind))


def test_what_shapes_do_not_show_is_of_the_release_that_they_point_to():
    v3 = dict(MICRO, stem="conv", downsample="conv3", mixer=dict(ssm_ratio=1.0))
    found = find_arch(backbone_shapes("MSVMamba", v3), "msvmamba")
    assert found.arch["mlp_norm"] == "post"
    assert found.arch["mixer"]["norm_position"] == "sum"
    rope = dict(PLAIN, rope=True)
    found = find_arch(backbone_shapes("Vim", rope), "vim")
    assert found.arch == dict(rope, cls_token="head", divide_out=False)


def test_names_of_the_same_shapes():
    found = find_arch(backbone_shapes("LocalVim", "small-searched"), "local_vim")
    assert (found.arch, found.others) == ("small", ("small-searched",))
    # 28 patches a side: 448 pixels, or 232 in steps of 8
    found = find_arch(backbone_shapes("Vim", "tiny", img_size=448), "vim")
    assert (found.arch, found.others) == ("tiny", ("tiny-stride8",))
    assert find_arch(backbone_shapes("Vim", "tiny-stride8"), "vim").others == ()


def test_config():
    shapes = backbone_shapes("Vim", "tiny", drop_cls_token=True)
    assert find_arch(shapes, "vim").config == dict(
        type="mmvssm.Vim", arch="tiny", drop_cls_token=True
    )


def test_detector_of_the_authors():
    weights = {f"backbone.{key}": value for key, value in released("vmamba/vmambav0_tiny").items()}
    for i, width in enumerate((96, 192, 384, 768)):
        for name in ("weight", "bias"):
            weights[f"backbone.outnorm{i}.{name}"] = torch.empty(width, device="meta")
    mapped = map_state_dict(weights, find_family(weights), "dense")
    shapes = {key.removeprefix("backbone."): shape for key, shape in shapes_of(mapped).items()}
    found = find_arch(shapes, "vmamba")
    assert (found.arch, found.options) == ("v0-tiny", {})


@pytest.mark.parametrize("prefix", ["", "backbone.", "backbone.net."])
@pytest.mark.parametrize("name", ["vmamba/vmambav0_tiny", "vim/vim_tiny", "msvmamba/v3_tiny"])
def test_families_of_detectors(prefix, name):
    keys = [prefix + key for key in released(name)]
    keys += ["neck.layers.0.mixer.attn.weight", "decode_head.layers.0.blocks.0.conv_branch.weight"]
    keys += ["backbone.fpn1.0.weight", "backbone.simfp_2.0.weight"]
    assert find_family(keys) == family_of(name)


@pytest.mark.parametrize("family", TYPES)
def test_families_of_our_backbones_alone(family):
    arch = PLAIN if "vim" in family else MICRO
    assert find_family(backbone_shapes(TYPES[family], arch)) == family


def test_a_scan_from_the_start_only_is_vim():
    assert find_family(["layers.0.mixer.A_log", "layers.0.mixer.D"]) == "vim"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("vmamba/vmambav0_tiny", "vim/vim_tiny"),
        ("vmamba/vmambav2_tiny_s1l8", "msvmamba/nano"),
        ("vmamba/vmambav0_small", "local_mamba/local_vssm_tiny"),
        ("vim/vim_tiny", "local_mamba/local_vim_tiny"),
        ("msvmamba/v3_tiny", "efficient_vmamba/tiny"),
    ],
)
def test_mixed_families(first, second):
    families = {family_of(first), family_of(second)}
    keys = [*released(first), *released(second)]
    with pytest.raises(MixedFamiliesError, match=r"mix families: (\w+) \(.+\) and (\w+) \(") as e:
        find_family(keys)
    assert all(f"{family} (layers." in str(e.value) for family in families)
    ours = {
        key for name in (first, second) for key in map_state_dict(released(name), family_of(name))
    }
    with pytest.raises(MixedFamiliesError):
        find_family(sorted(ours))


@pytest.mark.parametrize(
    "keys",
    [
        [],
        ["conv1.weight", "layer1.0.conv1.weight"],
        ["backbone.stages.0.blocks.0.attn.w_msa.qkv.weight", "neck.layers.0.mixer.A_log"],
        ["layers.0.blocks.0.mlp.fc1.weight"],
    ],
)
def test_unknown_family(keys):
    with pytest.raises(UnknownFamilyError) as e:
        find_family(keys)
    assert all(family in str(e.value) for family in KEY_MAPS)
    assert all(key in str(e.value) for key in keys)


def test_arch_by_name():
    shapes = backbone_shapes("VMamba", "tiny-s1l8", out_indices=(3,))
    for name in ("tiny-s1l8", "vmamba/tiny-s1l8", "VMamba/tiny-s1l8"):
        found = find_arch(shapes, "vmamba", name)
        assert (found.arch, found.options) == ("tiny-s1l8", dict(out_indices=(3,)))
    local = backbone_shapes("LocalVim", "small")
    assert find_arch(local, "local_vim", "LocalVim/small-searched").arch == "small-searched"
    with pytest.raises(ArchError, match=r"VMamba 'v0-tiny'; .*: \d+ left over: .* and \d+ more;"):
        find_arch(shapes, "vmamba", "v0-tiny")
    with pytest.raises(ValueError, match=r"must be one of v0-tiny, .*base-s1l20.*; got 'tiny'"):
        find_arch(shapes, "vmamba", "tiny")
    with pytest.raises(ValueError, match=r"arch 'Vim/tiny' must be of VMamba"):
        find_arch(shapes, "vmamba", "Vim/tiny")
    with pytest.raises(ValueError, match=r"family must be one of vmamba, .*, got 'swin'"):
        find_arch(shapes, "swin")


def test_a_classifier_fits_the_config_of_a_detector(tmp_path):
    config = tmp_path / "vim.py"
    config.write_text(
        "model = dict(backbone=dict(type='mmvssm.Vim', arch='tiny', img_size=1024, out_norm=False,"
        " out_indices=(5, 23), drop_cls_token=True, divide_out=False, out_type='featmap'))"
    )
    found = find_arch(backbone_shapes("Vim", "tiny"), "vim", str(config))
    assert found.options == dict(divide_out=False, out_type="featmap")
    shapes = backbone_shapes("Vim", "tiny", img_size=512, drop_cls_token=True, out_indices=(0, 1))
    found = find_arch(shapes, "vim", str(config))
    assert found.options["img_size"] == 512 and found.options["drop_cls_token"]
    assert len(found.options["out_indices"]) == 2 and "out_norm" not in found.options


def test_arch_of_a_config_file(tmp_path):
    shapes = backbone_shapes("Vim", PLAIN, img_size=(64, 128))
    config = tmp_path / "vim.py"
    lines = [
        "_base_ = ['mmvssm::_base_/vmamba_micro.py']",
        "model = dict(backbone=dict(type='mmvssm.Vim', img_size=(64, 128),",
        "    arch=dict(embed_dims=16, num_layers=4), init_cfg=dict(type='Pretrained')))",
    ]
    config.write_text("\n".join(lines))
    found = find_arch(shapes, "vim", str(config))
    assert (found.arch, found.options) == (PLAIN, dict(img_size=(64, 128)))
    with pytest.raises(ArchError, match=r"\(33 positions, 1 of class tokens, .* no square image\)"):
        find_arch(shapes, "vim")
    other = backbone_shapes("Vim", dict(PLAIN, embed_dims=32))
    with pytest.raises(ArchError, match=r"cls_token \(1, 1, 32\) instead of \(1, 1, 16\)"):
        find_arch(other, "vim", str(config))
    with pytest.raises(ValueError, match=r"must be LocalVim, .*; got 'Vim'"):
        find_arch(other, "local_vim", str(config))
    with pytest.raises(FileNotFoundError, match=r"there is no config file 'missing.py'"):
        find_arch(other, "vim", "missing.py")
    config.write_text("model = dict(")
    with pytest.raises(ValueError, match=r"the config '.*vim.py' cannot be read \("):
        find_arch(other, "vim", str(config))
    config.write_text("model = dict(backbone=dict(type='mmvssm.Vim', depth=3))")
    with pytest.raises(ValueError, match=r"cannot be built \(.*depth"):
        find_arch(other, "vim", str(config))


def grid_rows_only(shapes, number=1):
    """Shapes of a dense model as its authors save it: the rows of class tokens are gone."""
    batch, rows, width = shapes["pos_embed"]
    return {**shapes, "pos_embed": (batch, rows - number, width)}


def loads_into(found, shapes):
    """Whether the backbone loads weights of these shapes."""
    with torch.device("meta"):
        weights = {key: torch.empty(shape) for key, shape in shapes.items()}
        return found.build().load_state_dict(weights, assign=True) == ([], [])


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("Vim", "tiny", dict(out_norm=False)),
        ("Vim", "small", dict(out_norm=False, img_size=1024)),
        ("Vim", "base", dict(out_indices=(5, 11, 17, 23), out_norm="ln", img_size=512)),
        ("LocalVim", "tiny-mid-cls", dict(out_indices=(4, 9, 14, 19), out_norm="ln")),
    ],
)
def test_dense_weights_without_class_rows(kind, name, options):
    shapes = grid_rows_only(backbone_shapes(kind, name, drop_cls_token=True, **options))
    assert shapes == backbone_shapes(kind, name, cls_token="none", **options)
    found = find_arch(shapes, FAMILIES[kind], name)
    assert (found.arch, found.options) == (name, dict(drop_cls_token=True, **options))
    assert loads_into(found, shapes)
    best = find_arch(shapes, FAMILIES[kind])
    # "tiny" without its rotary embedding is the network of "tiny-mid-cls"
    assert (best.arch == name and best.options == found.options) or best.others == ("tiny-mid-cls",)
    batch, rows, width = shapes["pos_embed"]
    with pytest.raises(ArchError, match=r"positions, .* are those of no square image"):
        find_arch({**shapes, "pos_embed": (batch, rows + 3, width)}, FAMILIES[kind], name)


def test_weights_without_class_tokens_that_are_of_a_classifier_or_have_a_rotary_embedding():
    for options in (dict(), dict(rope=True, divide_out=False, out_norm=False)):
        shapes = backbone_shapes("Vim", "tiny", cls_token="none", **options)
        found = find_arch(shapes, "vim")
        assert (found.arch, found.options) == ("tiny", dict(cls_token="none", **options))


@pytest.mark.parametrize("img_size", [512, 768])
@pytest.mark.parametrize("prefix", ["", "mmvssm::"])
def test_dense_weights_without_class_rows_fit_our_configs(prefix, img_size):
    name = "vim/vim-tiny_upernet_4xb8-60k_ade20k-512x512.py"
    config = name if prefix else str(TESTS.parent / "configs" / name)
    found = find_arch(
        grid_rows_only(
            backbone_shapes("Vim", "tiny", drop_cls_token=True, out_norm=False, img_size=img_size)
        ),
        "vim",
        prefix + config,
    )
    expected = Config.fromfile(TESTS.parent / "configs" / name).model.backbone.to_dict()
    kept = {"drop_cls_token", "feature", "out_type", "drop_path_rate"} & expected.keys()
    assert {key: found.options[key] for key in kept} == {key: expected[key] for key in kept}
    assert found.options["drop_cls_token"] and found.options["img_size"] == img_size
    assert found.arch == "tiny"


@pytest.mark.parametrize("place", ["middle", "double"])
@pytest.mark.parametrize("options", [dict(img_size=(64, 128)), dict(img_size=64, out_norm="ln")])
def test_tables_without_class_rows_fit_configs_that_drop_the_token(place, options, tmp_path):
    options = dict(options, cls_token=place, drop_cls_token=True)
    config = tmp_path / "vim.py"
    config.write_text(f"model = dict(backbone=dict(type='mmvssm.Vim', arch={PLAIN}, **{options}))")
    number = 2 if place == "double" else 1
    shapes = grid_rows_only(backbone_shapes("Vim", PLAIN, **options), number)
    found = find_arch(shapes, "vim", str(config))
    assert (found.arch, found.options) == (PLAIN, options)
    assert loads_into(found, shapes)
    if options["img_size"] == 64:
        # of another size, and with the one norm that a classifier has
        larger = grid_rows_only(
            backbone_shapes("Vim", PLAIN, **{**options, "img_size": 96}), number
        )
        found = find_arch(larger, "vim", str(config))
        assert (found.arch, found.options) == (PLAIN, {**options, "img_size": 96})
        assert loads_into(found, larger)


def test_differences_are_those_from_the_config_as_it_is(tmp_path):
    config = tmp_path / "vim.py"
    options = dict(drop_cls_token=True, out_norm=False, img_size=64)
    config.write_text(f"model = dict(backbone=dict(type='mmvssm.Vim', arch={PLAIN}, **{options}))")
    shapes = backbone_shapes("Vim", PLAIN, **options)
    shapes["layers.1.norm.weight"] = (17,)
    with pytest.raises(ArchError) as e:
        find_arch(shapes, "vim", str(config))
    assert str(e.value).endswith(
        "; differences: 1 of another shape or type: layers.1.norm.weight (17,) instead of (16,)"
    )
    shapes = backbone_shapes("Vim", dict(PLAIN, num_layers=5), cls_token="none", img_size=64)
    del shapes["norm0.weight"]
    with pytest.raises(ArchError, match=r"differences: \d+ left over: layers\.4\.[^;]*$"):
        find_arch(shapes, "vim", str(config))


@pytest.mark.parametrize(
    "kind",
    ["type='mmvssm.models.Vim'", "type='mmvssm.Vim'", "type='Vim'", "type=Vim", "type=models.Vim"],
)
def test_types_in_configs(kind, tmp_path):
    config = tmp_path / "vim.py"
    arch = "dict(embed_dims=16, num_layers=4)"
    lines = ["from mmvssm import models", "from mmvssm.models import Vim"]
    config.write_text("\n".join([*lines, f"model = dict(backbone=dict({kind}, arch={arch}))"]))
    found = find_arch(backbone_shapes("Vim", PLAIN), "vim", str(config))
    assert (found.type, found.arch, found.options) == ("Vim", PLAIN, {})
    with pytest.raises(ValueError, match=r"must be LocalVim, .*; got 'Vim'"):
        find_arch(backbone_shapes("LocalVim", PLAIN), "local_vim", str(config))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys\nsys.exit()", "the config {} cannot be read (it ends with sys.exit(None))"),
        (
            "raise SystemExit('enough')",
            "the config {} cannot be read (it ends with sys.exit('enough'))",
        ),
        ("raise KeyError", "the config {} cannot be read (KeyError)"),
        ("model = dict(neck=3)", "no model.backbone can be read from {} ('backbone')"),
        (
            "model = dict(backbone=None)",
            "no model.backbone can be read from {} ('NoneType' object is not iterable)",
        ),
    ],
)
def test_configs_that_cannot_be_read(text, message, tmp_path):
    config = tmp_path / "broken.py"
    config.write_text(text)
    with pytest.raises(ValueError) as e:
        find_arch(backbone_shapes("Vim", PLAIN), "vim", str(config))
    assert str(e.value) == message.format(repr(str(config)))


def test_config_of_ours_that_is_not_there():
    with pytest.raises(FileNotFoundError, match=r"no config 'vim/vim-tinny.py'.*closest: vim/vim-"):
        find_arch(backbone_shapes("Vim", PLAIN), "vim", "mmvssm::vim/vim-tinny.py")


def test_one_changed_tensor():
    shapes = backbone_shapes("VMamba", "tiny-s1l8")
    key = "stages.2.blocks.5.mixer.x_proj_weight"
    expected = rf"'tiny-s1l8', .*: 1 of another shape or type: {key} \(4, 25\) instead of \(4, 26, "
    with pytest.raises(ArchError, match=expected):
        find_arch({**shapes, key: (4, 25)}, "vmamba")
    del shapes[key]
    with pytest.raises(ArchError, match=f"'tiny-s1l8', .*: 1 left over: extra; 1 missing: {key}"):
        find_arch({**shapes, "extra": (1,)}, "vmamba")


def test_the_nearest_is_called_by_name_where_it_has_one():
    shapes = backbone_shapes("EfficientVMamba", "tiny")
    with pytest.raises(ArchError, match=r"than the nearest, 'tiny', .*: 1 left over: extra"):
        find_arch({**shapes, "extra": (1,)}, "efficient_vmamba")


@pytest.mark.parametrize("arch", [None, "tiny"])
def test_more_blocks_than_any_network_has(arch):
    """Building them would take minutes."""
    shapes = backbone_shapes("Vim", PLAIN)
    layer = {key: shape for key, shape in shapes.items() if key.startswith("layers.0.")}
    for i in range(600):
        shapes.update({key.replace("0", str(i), 1): shape for key, shape in layer.items()})
    with pytest.raises(ArchError, match="have 600 blocks, more than 512"):
        find_arch(shapes, "vim", arch)


def test_unnamed_number_of_directions():
    arch = dict(MICRO, directions=[["h", "v"]] * 4)
    with pytest.raises(ArchError, match=r"scans in 2 directions, which are not stored .*config"):
        find_arch(backbone_shapes("LocalVMamba", arch), "local_vmamba")


def test_damaged_shapes_are_refused():
    """Whatever the shapes are, the answer is an error in words, and comes soon."""
    chance = random.Random(0)
    kinds = [(kind, PLAIN if "Vim" in kind else MICRO) for kind in FAMILIES]
    sizes = (0, 1, 3, 10**6, 2**40, 2**62)
    for kind, arch in kinds * 2:
        shapes = backbone_shapes(kind, arch)
        stem = [key for key in shapes if not key.startswith(("stages.1", "stages.2", "norm"))]
        key = chance.choice(stem)
        if chance.random() < 0.3:
            del shapes[key]
        else:
            shapes[key] = tuple(chance.choice(sizes) for _ in range(chance.randrange(5)))
        with pytest.raises(ArchError):
            find_arch(shapes, FAMILIES[kind])


def test_compare():
    floating, whole = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64)
    assert not compare({"a": floating}, {"a": floating.half()})
    assert str(compare({"a": (2, 3)}, {"a": floating})) == "no difference"
    differences = compare({"a": whole, "b": floating}, {"a": floating, "c": floating})
    assert (differences.left_over, differences.missing) == (("b",), ("c",))
    assert differences.changed == ("a (2, 3) of int64 instead of (2, 3)",)
    many = compare({}, {f"k{i}": (1,) for i in range(20)})
    assert len(many) == 20
    assert str(many) == "20 missing: k0, k1, k2, k3, k4, k5, k6, k7 and 12 more"


def test_ratio():
    assert ratio([(48, 192), (96, 384)], 4.0) == 4.0
    assert ratio([(8, 1)], 0.125) == 0.125
    for value in (0.3, 1.37, 2.6667, 8 / 3):
        pairs = [(width, int(value * width)) for width in (96, 192, 384, 768)]
        found = ratio(pairs, 4.0)
        assert [int(found * width) for width, _ in pairs] == [wide for _, wide in pairs]
    with pytest.raises(ValueError, match="no one ratio makes 10 of 10, 30 of 10"):
        ratio([(10, 10), (10, 30)], 4.0)
