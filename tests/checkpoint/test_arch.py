"""Families, archs and options are found from keys, shapes and metadata of files."""

import random
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmvssm.checkpoint import convert, find_arch, find_family
from mmvssm.checkpoint.arch import (
    ArchError,
    Found,
    compare,
    declared_backbones,
    find_in_config,
    hold_against,
    read_config,
)
from mmvssm.families import FAMILIES, Family, find_declared, register_family
from mmvssm.families.recognise import MixedFamiliesError, UnknownFamilyError
from mmvssm.families.rules import Rename
from mmvssm.families.stages import SS2D_TRUNK, TASKS, read_options
from mmvssm.models import VMamba
from mmvssm.models.backbones.plain import PlainBackbone

DEMOS = sorted((Path(__file__).parents[2] / "configs/demo").glob("*.py"))
MICRO = dict(embed_dims=16, depths=(1, 1, 1, 1))
PLAIN = dict(embed_dims=16, num_layers=4)


def shapes(kind, arch, class_rows=True, **options):
    """Return shapes of a backbone; the authors save tables without the rows of class tokens."""
    given = Found(find_declared(kind), arch, options).shapes()
    if not class_rows:
        batch, rows, width = given["pos_embed"]
        given = {**given, "pos_embed": (batch, rows - 1, width)}
    return given


def loads_into(found, given):
    """Return whether the backbone loads weights of these shapes."""
    with torch.device("meta"):
        weights = {key: torch.empty(shape) for key, shape in given.items()}
        return found.build().load_state_dict(weights, assign=True) == ([], [])


@pytest.mark.parametrize("config", DEMOS, ids=lambda path: path.stem)
def test_demo_configs(config):
    """Networks without a name are recognised by shape, by their config or by its stored text."""
    backbone = Config.fromfile(config).model.backbone.to_dict()
    kind, arch = backbone.pop("type"), backbone.pop("arch")
    given = shapes(kind, arch, **backbone)
    family = find_declared(kind)
    assert find_family(f"backbone.{key}" for key in given) is family
    for found in (
        find_in_config(read_config(str(config)), "x.py"),
        *declared_backbones(dict(meta=dict(cfg=Config.fromfile(config).pretty_text))),
    ):
        assert (found.family, found.arch, found.options) == (family, arch, backbone)
        assert hold_against(found, given, "x.py").shapes() == given
    with pytest.raises(ArchError, match=r"name its config file \(--arch CONFIG.py\)"):
        find_arch(given, family)


DROPPED = dict(drop_cls_token=True)
FOUR = dict(out_indices=(5, 11, 17, 23), out_norm="ln")


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
        ("Vim", "small", dict(DROPPED, out_norm=False, img_size=1024)),
        ("Vim", "small", FOUR),
        ("Vim", "base", dict(cls_token="double", in_channels=6)),
        ("Vim", "base", dict(norm="ln", cls_token="none")),
        ("Vim", "tiny", dict(rope=True, divide_out=False, cls_token="head")),
        ("LocalVim", "tiny", dict(out_indices=(4, 9, 14, 19), out_norm="ln", img_size=512)),
        ("LocalVim", "tiny-mid-cls", dict(DROPPED, out_norm=False)),
        ("LocalVim", "tiny-search", {}),
        ("LocalVim", "small", dict(rope=False, directions="search")),
        # dense models as authors save them
        ("Vim", "tiny", dict(DROPPED, out_norm=False, class_rows=False)),
        ("Vim", "small", dict(DROPPED, out_norm=False, img_size=1024, class_rows=False)),
        ("Vim", "base", dict(DROPPED, **FOUR, img_size=512, class_rows=False)),
        (
            "LocalVim",
            "tiny-mid-cls",
            dict(DROPPED, out_indices=(4, 9, 14, 19), out_norm="ln", class_rows=False),
        ),
    ],
)
def test_options_of_named_archs(kind, arch, options):
    given, family = shapes(kind, arch, **options), find_declared(kind)
    found = find_arch(given, family, None if options.pop("class_rows", True) else arch)
    assert (found.arch, found.options) == (arch, options)
    assert find_family(given) is family and loads_into(found, given)


def test_names_of_the_same_shapes():
    found = find_arch(shapes("LocalVim", "small-searched"), FAMILIES["local_vim"])
    assert (found.arch, found.others) == ("small", ("small-searched",))
    # 28 patches a side: 448 pixels, or 232 in steps of 8
    found = find_arch(shapes("Vim", "tiny", img_size=448), FAMILIES["vim"])
    assert (found.arch, found.others) == ("tiny", ("tiny-stride8",))
    assert found.config == dict(type="mmvssm.Vim", arch="tiny", img_size=448)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_families_of_small_backbones(family):
    keys = shapes(family.name, PLAIN if issubclass(family.backbone, PlainBackbone) else MICRO)
    assert find_family(keys) is family
    block = next(key for key in keys if "A_logs" in key).rpartition(".")[0]
    with pytest.raises(UnknownFamilyError, match=f"{family.name} does not have: .*snake") as e:
        find_family([*keys, f"{block}.snake.weight", "stages.0.blocks.0.snake.weight"])
    assert all(name in str(e.value) for name in FAMILIES)


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
    assert all(word in str(e.value) for word in (*FAMILIES, *keys))


def test_arch_by_name():
    given, family = shapes("VMamba", "tiny-s1l8", out_indices=(3,)), FAMILIES["vmamba"]
    found = find_arch(given, family, "tiny-s1l8")
    assert (found.arch, found.options) == ("tiny-s1l8", dict(out_indices=(3,)))
    with pytest.raises(ArchError, match=r"VMamba 'v0-tiny'.*: \d+ left over: .* and \d+ more;"):
        find_arch(given, family, "v0-tiny")
    with pytest.raises(ValueError, match=r"must be one of v0-tiny, .*base-s1l20.*; got 'tiny'"):
        find_arch(given, family, "tiny")
    weights = {f"backbone.{key}": torch.zeros(1).expand(shape) for key, shape in given.items()}
    for name in ("tiny-s1l8", "vmamba/tiny-s1l8", "VMamba/tiny-s1l8"):
        assert convert(weights, arch=name, to="backbone").found.arch == "tiny-s1l8"
    with pytest.raises(ArchError, match=r"do not fit Vim 'tiny'"):
        convert(weights, arch="Vim/tiny", to="backbone")


def test_a_classifier_fits_the_config_of_a_detector():
    options = dict(DROPPED, out_norm=False, divide_out=False, out_type="featmap")
    options |= dict(arch="tiny", img_size=1024, out_indices=(5, 23))
    config = Config(dict(model=dict(backbone=dict(type="mmvssm.Vim", **options))))
    declared = find_in_config(config, "vim.py")
    found = hold_against(declared, shapes("Vim", "tiny"), "vim.py")
    assert found.options == dict(divide_out=False, out_type="featmap")
    given = shapes("Vim", "tiny", **DROPPED, img_size=512, out_indices=(0, 23))
    found = hold_against(declared, given, "vim.py")
    assert found.options["img_size"] == 512 and found.options["drop_cls_token"]
    assert len(found.options["out_indices"]) == 2 and "out_norm" not in found.options


@pytest.mark.parametrize("img_size", [512, 768])
def test_dense_weights_without_class_rows_fit_our_configs(img_size):
    path = "mmvssm::vim/vim-tiny_upernet_4xb8-60k_ade20k-512x512.py"
    options = dict(DROPPED, out_norm=False, img_size=img_size)
    given = shapes("Vim", "tiny", class_rows=False, **options)
    declared = find_in_config(read_config(path), path)
    found = hold_against(declared, given, path)
    expected = {k: v for k, v in declared.options.items() if k != "out_indices"}
    assert found.arch == "tiny" and found.options == {**expected, "img_size": img_size}
    assert loads_into(found, given)


def test_arch_of_a_config_file(tmp_path):
    config = tmp_path / "vim.py"
    config.write_text(
        "_base_ = ['mmvssm::_base_/vmamba_micro.py']\n"
        "model = dict(backbone=dict(type='mmvssm.Vim', img_size=(64, 128),\n"
        "    arch=dict(embed_dims=16, num_layers=4), init_cfg=dict(type='Pretrained')))\n"
    )
    declared = find_in_config(read_config(str(config)), str(config))
    found = hold_against(declared, shapes("Vim", PLAIN, img_size=(64, 128)), str(config))
    assert (found.arch, found.options) == (PLAIN, dict(img_size=(64, 128)))
    other = shapes("Vim", dict(PLAIN, embed_dims=32))
    with pytest.raises(ArchError, match=r"cls_token \(1, 1, 32\) instead of \(1, 1, 16\)"):
        hold_against(declared, other, str(config))
    with pytest.raises(FileNotFoundError, match=r"there is no config file 'missing.py'"):
        read_config("missing.py")
    for text, message in {
        "model = dict(": "cannot be read",
        "import sys\nsys.exit(3)": r"cannot be read \(it ends with sys.exit\(3\)\)",
        "model = dict(head=1)": "no model.backbone can be read",
        "model = dict(backbone=dict(type='ResNet'))": "must be one of .*, got the type 'ResNet'",
        "model = dict(backbone=dict(type='Vim', depth=3))": r"cannot be built \(.*depth",
    }.items():
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            hold_against(find_in_config(read_config(str(config)), "vim.py"), other, "vim.py")


# What files say of themselves


def micro_weights(**options):
    return VMamba(MICRO, **options).state_dict(prefix="backbone.")


def text_of(**backbone):
    return f"work_dir = 'a'\nmodel = dict(type='A', backbone={backbone!r})\n"


@pytest.mark.parametrize("options", [dict(out_norm=False), {}])
def test_stored_config_is_data(options):
    """The outputs and the image size of the weights take precedence."""
    start = dict(type="Pretrained")
    text = text_of(type="VMamba", arch=dict(MICRO), out_norm=False, init_cfg=start)
    found = convert(dict(state_dict=micro_weights(**options), meta=dict(cfg=text))).found
    assert (found.arch, found.options) == (MICRO, options)


@pytest.mark.parametrize(
    "text",
    [
        "open({path!r}, 'w')\nmodel = dict(backbone=dict(type='VMamba', arch=open({path!r}, 'w')))",
        "model = dict(backbone=dict(type='VMamba', arch=[open({path!r}, 'w') for _ in 'a']))",
        "model = dict(backbone=dict(type='VMamba', arch=(lambda: open({path!r}, 'w'))()))",
        "model = dict(backbone=dict(**open({path!r}, 'w')))",
        "model = dict(backbone=__import__('os').system('touch {path}'))",
        "_base_ = {path!r}\nimport os\nos.system('touch {path}')",
        "model = dict(backbone=dict(type='VMamba', init_cfg=dict(checkpoint={path!r})))",
        "model = dict(backbone=" + "(" * 5000 + ")" * 5000 + ")",
        "model = dict(backbone=" + "-" * 100_000 + "1)",
        "\x00" * 10,
    ],
)
@pytest.mark.filterwarnings("ignore:the file names:UserWarning")
def test_stored_text_is_never_run(tmp_path, text):
    path = tmp_path / "touched"
    meta = dict(cfg=text.replace("{path!r}", repr(str(path))).replace("{path}", str(path)))
    with pytest.raises(ArchError):
        convert(dict(state_dict=micro_weights(), meta=meta))
    assert not path.exists()


@pytest.mark.parametrize(
    "arch",
    [
        dict(embed_dims=16, depths=(10**6, 1, 1, 1)),
        dict(embed_dims=16, depths=[0] * 5000),
        dict(embed_dims=16, depths=(1, 1, 1, 1), patch_size=10**9),
        dict(embed_dims=16, depths=-1),
        dict(embed_dims=[[[[[[[[1]]]]]]]]),
        dict(embed_dims=1e300, depths=(1, 1)),
        "giant",
        ["tiny-s1l8"],
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:the file names:UserWarning")
def test_what_files_say_is_bounded(arch):
    weights = micro_weights()
    for meta in (
        dict(cfg=text_of(type="VMamba", arch=arch)),
        dict(mmvssm=dict(type="mmvssm.VMamba", arch=arch)),
        dict(mmvssm=dict(type="mmvssm.VMamba", arch="v0-tiny", options=dict(mixer=arch))),
    ):
        with pytest.raises(ArchError):
            convert(dict(state_dict=weights, meta=meta))


def test_damaged_shapes_are_refused():
    """Whatever the shapes are, a clear error is raised quickly."""
    chance = random.Random(0)
    sizes = (0, 1, 3, 10**6, 2**40, 2**62)
    for family in [*FAMILIES.values()] * 2:
        given = dict(shapes(family.name, next(iter(family.backbone.arch_settings))))
        key = chance.choice([key for key in given if not key.startswith(("stages.1", "norm"))])
        if chance.random() < 0.3:
            del given[key]
        else:
            given[key] = tuple(chance.choice(sizes) for _ in range(chance.randrange(5)))
        with pytest.raises(ArchError):
            find_arch(given, family)


def test_compare():
    floating, integers = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64)
    assert not compare({"a": floating}, {"a": floating.half()}).number
    assert str(compare({"a": (2, 3)}, {"a": floating})) == "no difference"
    differences = compare({"a": integers, "b": floating}, {"a": floating, "c": floating})
    assert (differences.left_over, differences.missing) == (("b",), ("c",))
    assert differences.changed == ("a (2, 3) of int64 instead of (2, 3)",)
    many = compare({}, {f"k{i}": (1,) for i in range(20)})
    assert many.number == 20
    assert str(many) == "20 missing: k0, k1, k2, k3, k4, k5, k6, k7 and 12 more"


class SnakeVMamba(VMamba):
    """A backbone of another project, with a layer of its own."""

    arch_settings: ClassVar[dict] = {"nano": dict(embed_dims=8, depths=(1, 1, 1, 1))}

    def build_block(self, arch, embed_dims, stage, layer, **options):
        block = super().build_block(arch, embed_dims, stage, layer, **options)
        block.snake = nn.Linear(embed_dims, 2)
        return block


def test_family_of_another_project():
    weights = SnakeVMamba("nano", out_indices=3).state_dict(prefix="backbone.")
    family = Family(
        name="snake_vmamba",
        backbone=SnakeVMamba,
        trunk=(*SS2D_TRUNK, Rename(".python.", ".snake.")),
        tasks=TASKS,
        read_options=read_options,
        sign=r"\.blocks\.\d+\.(snake|python)\.",
    )
    try:
        register_family(family)
        assert find_family(weights) is family
        found = convert(weights).found
        assert found.config == dict(type="SnakeVMamba", arch="nano", out_indices=(3,))
        twin = type("Twin", (SnakeVMamba,), {})
        register_family(replace(family, name="twin", backbone=twin))
        with pytest.raises(MixedFamiliesError, match=r"mix families: snake_vmamba .* and twin"):
            find_family(weights)
    finally:
        for name in ("snake_vmamba", "twin"):
            FAMILIES.pop(name, None)
    # unless it is declared, it belongs to no family
    with pytest.raises(UnknownFamilyError, match=r"vmamba does not have: .*snake.*--import"):
        convert(weights)
