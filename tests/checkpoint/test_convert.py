"""Conversion of files for each task, and back to the original projects."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint

import mmvssm.models
from mmvssm.checkpoint import convert, to_original, write_checkpoint
from mmvssm.families import FAMILIES
from mmvssm.models import Vim
from mmvssm.registry import MODELS

CONFIGS = Path(__file__).parents[2] / "configs"
#: A detector and a segmentor of every family.
DENSE = [
    f"{family}/{min(path.name for path in CONFIGS.glob(f'{family}/{pattern}.py'))}"
    for family in FAMILIES
    for pattern in ("mask-rcnn_*-tiny*", "*-tiny*_upernet_*")
]
PLAIN = dict(embed_dims=16, num_layers=4)
MICRO = dict(embed_dims=8, depths=(1, 1, 1, 1))


def classifier_of(kind, arch):
    """Return the weights of a classifier, which take no memory."""
    options = {} if kind in ("Vim", "LocalVim") else dict(out_indices=3)
    with torch.device("meta"):
        backbone = getattr(mmvssm.models, kind)(arch, **options)
    shapes = {key: value.shape for key, value in backbone.state_dict(prefix="backbone.").items()}
    dims = backbone.embed_dims if isinstance(backbone.embed_dims, int) else backbone.embed_dims[-1]
    shapes |= {"head.fc.weight": (5, dims), "head.fc.bias": (5,)}
    counters = {key for key in shapes if key.endswith("num_batches_tracked")}
    return {
        key: torch.zeros((), dtype=torch.int64 if key in counters else torch.float32).expand(shape)
        for key, shape in shapes.items()
    }


@pytest.mark.parametrize("name", DENSE)
def test_a_classifier_starts_the_models_of_the_configs(name):
    config = Config.fromfile(CONFIGS / name).model.backbone
    weights = classifier_of(config.type.removeprefix("mmvssm."), config.arch)
    content = "segmentor" if "upernet" in name else "detector"
    converted = convert(weights, to=content)
    with torch.device("meta"):
        wanted = MODELS.build(config).state_dict(prefix="backbone.")
    assert list(converted.state_dict) == list(wanted)
    # tables of positions are resized when they are loaded
    resized = {key for key in wanted if "pos_embed" in key or "rope" in key}
    for key in wanted.keys() - resized:
        assert converted.state_dict[key].shape == wanted[key].shape
    for key, value in converted.state_dict.items():
        is_new = key in converted.reinitialised
        assert is_new == (".norm" in key[:14])
        assert (value == float(is_new and key.endswith("weight"))).all()
    assert converted.meta["mmvssm"]["content"] == content
    if resized:
        weights = {k.removeprefix("backbone."): v for k, v in converted.state_dict.items()}
        MODELS.build(config).load_state_dict(weights, strict=True)


def test_the_layers_alone():
    weights = classifier_of("VMamba", "v0-tiny")
    converted = convert(weights, to="backbone")
    rest = {key for key in weights if key.startswith(("head.", "backbone.norm3"))}
    assert converted.state_dict.keys() == weights.keys() - rest and not converted.reinitialised
    (entry, layers), *_ = to_original(converted).items()
    # weights that the authors' detectors start from have no prefix, and the first release's names
    assert entry == "model" and "layers.0.blocks.0.self_attention.Ds" in layers


def said(kind, arch, **options):
    """Return what a file of ours stores about a network without a name."""
    return dict(mmvssm=dict(type=f"mmvssm.{kind}", arch=arch, options=options))


HEADS = {
    "classifier": {},
    "detector": {"rpn_head.rpn_conv.weight": torch.ones(1)},
    "segmentor": {"decode_head.conv_seg.weight": torch.ones(1)},
}


@pytest.mark.parametrize(("content", "heads"), HEADS.items())
@pytest.mark.parametrize(("arch", "name"), [("v0-tiny", "self_attention"), ("tiny-s1l8", "op")])
def test_names_for_weights_trained_here(content, heads, arch, name):
    """The first variants get the names that every version of their authors' code reads."""
    weights = classifier_of("VMamba", arch)
    if heads:
        weights = {key: value for key, value in weights.items() if not key.startswith("head.")}
    converted = convert({**weights, **heads})
    assert converted.content == content and converted.names is None
    (restored,) = to_original(converted).values()
    prefix = "backbone." if heads else ""
    assert f"{prefix}layers.0.blocks.0.{name}.Ds" in restored
    # converted files go back to their original form, whatever their arch
    again = convert(restored)
    other = "current" if name == "op" else "first-release"
    assert again.names == other
    meta = dict(again.meta["mmvssm"], names="current")
    product = convert(dict(state_dict=again.state_dict, meta=dict(mmvssm=meta)))
    assert product.names == "current"
    (restored,) = to_original(product).values()
    assert f"{prefix}layers.0.blocks.0.op.Ds" in restored


def test_out_norms_of_a_file_stay():
    norms = {f"backbone.norm{i}.weight": torch.full((96 * 2**i,), 2.0) for i in range(4)}
    norms |= {f"backbone.norm{i}.bias": torch.full((96 * 2**i,), 3.0) for i in range(4)}
    weights = classifier_of("VMamba", "v0-tiny")
    layers = {k: v for k, v in weights.items() if ".norm3" not in k and "head" not in k}
    for to in (None, "backbone", "detector", "segmentor"):
        converted = convert({**layers, **norms}, to=to)
        assert converted.source == "backbone" and not converted.reinitialised
        assert all(converted.state_dict[key] is value for key, value in norms.items())


def test_class_rows_do_not_go_back_to_segmentors():
    """Segmentors of Vim's authors remove the class token; our table keeps its row."""
    options = dict(drop_cls_token=True, out_norm=False, out_indices=(0, 1, 2, 3))
    backbone = Vim(PLAIN, img_size=64, out_type="featmap", **options)
    weights = backbone.state_dict(prefix="backbone.")
    weights["decode_head.conv_seg.weight"] = torch.ones(3, 4, 1, 1)
    meta = said("Vim", PLAIN, img_size=64, **options)
    converted = convert(dict(state_dict=weights, meta=meta))
    assert converted.content == "segmentor"
    table = to_original(converted)["state_dict"]["backbone.pos_embed"]
    rows = weights["backbone.pos_embed"]
    assert torch.equal(table, torch.cat([rows[:, :8], rows[:, 9:]], 1))


def test_arch_that_shapes_do_not_show():
    weights = classifier_of("LocalVim", "small")
    meta = convert(weights, arch="small-searched").meta
    assert meta["mmvssm"]["arch"] == "small-searched"
    # a converted file keeps it, unless other weights have been put into it
    assert convert(dict(state_dict=weights, meta=meta)).found.arch == "small-searched"
    others = classifier_of("LocalVim", "tiny")
    with pytest.warns(UserWarning, match="names mmvssm.LocalVim small-searched as its"):
        assert convert(dict(state_dict=others, meta=meta)).found.arch == "tiny"


@pytest.mark.parametrize("names", [object(), "foo", ["current"]])
def test_what_a_file_says_of_itself_is_not_believed(names):
    own = dict(arch=["v0-tiny"], names=names, weights="best")
    checkpoint = dict(state_dict=classifier_of("VMamba", "v0-tiny"), meta=dict(mmvssm=own))
    own = convert(checkpoint).meta["mmvssm"]
    assert (own["arch"], own["names"], own["weights"]) == ("v0-tiny", None, "online")


def test_double_precision_needs_a_dtype():
    weights = {k: v.double() for k, v in classifier_of("VMamba", dict(MICRO)).items()}
    checkpoint = dict(state_dict=weights, meta=said("VMamba", dict(MICRO)))
    with pytest.raises(ValueError, match="fp64 with a --dtype to convert them to"):
        convert(checkpoint)
    converted = convert(checkpoint, dtype="fp32")
    assert {value.dtype for value in converted.state_dict.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("config", "content"),
    [
        ("vmamba-micro_digits-cls", "classifier"),
        ("mask-rcnn_vmamba-micro_digits-det", "detector"),
        ("vmamba-micro_upernet_digits-seg", "segmentor"),
    ],
)
def test_heads_are_held_against_a_config(config, content):
    path = str(CONFIGS / "demo" / f"{config}.py")
    config = Config.fromfile(path)
    init_default_scope(config.default_scope)
    weights = MODELS.build(config.model).state_dict()
    converted = convert(weights, arch=path)
    assert converted.heads_checked and converted.content == content
    assert converted.state_dict.keys() == weights.keys()
    last = list(weights)[-1]
    assert not last.startswith("backbone.")
    missing = {key: value for key, value in weights.items() if key != last}
    with pytest.raises(ValueError, match=f"do not fit the config: 1 missing: {last}"):
        convert(missing, arch=path)
    with pytest.raises(ValueError, match=r"do not fit the config: 1 left over: teacher\.x"):
        convert({**weights, "teacher.x": torch.ones(1)}, arch=path)


@pytest.mark.parametrize("kind", ["Vim", "LocalVim", "VMamba"])
def test_other_image_sizes(tmp_path, kind):
    """MMEngine resizes position embeddings on every way of loading a converted file."""
    arch = dict(embed_dims=8, depths=(1, 1), pos_embed=True) if kind == "VMamba" else PLAIN
    options = dict(arch=arch, out_indices=(1,) if kind == "VMamba" else -1)
    small = getattr(mmvssm.models, kind)(img_size=64, **options)
    torch.nn.init.normal_(small.pos_embed)
    weights = small.state_dict(prefix="backbone.")
    checkpoint = dict(state_dict=weights, meta=said(kind, **options))
    path = write_checkpoint(
        tmp_path / "small.pth",
        dict(state_dict=convert(checkpoint).state_dict),
    )
    large = dict(type=f"mmvssm.{kind}", img_size=(96, 160), **options)
    start = dict(type="Pretrained", checkpoint=str(path), prefix="backbone.")
    by_init_cfg = MODELS.build(dict(large, init_cfg=start))
    by_init_cfg.init_weights()
    by_load_from = torch.nn.ModuleDict(dict(backbone=MODELS.build(large)))
    load_checkpoint(by_load_from, str(path), strict=True)
    assert torch.equal(by_init_cfg.pos_embed, by_load_from["backbone"].pos_embed)
    # both return what the small model returns for such an image
    image = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        (expected,), (result,) = small.eval()(image), by_init_cfg.eval()(image)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_meta():
    checkpoint = dict(
        model_ema=classifier_of("VMamba", "v0-tiny"),
        meta=dict(epoch=3, dataset_meta=dict(classes=("a", "b")), cfg="import os", iter=object()),
    )
    meta = convert(checkpoint).meta
    assert meta.keys() == {"epoch", "dataset_meta", "mmvssm"}
    assert meta["dataset_meta"] == dict(classes=("a", "b"))
    own = meta["mmvssm"]
    assert (own["type"], own["arch"], own["weights"]) == ("mmvssm.VMamba", "v0-tiny", "ema")
    # stored in the converted file, it stays true when that is converted again
    again = convert(dict(state_dict=convert(checkpoint).state_dict, meta=meta))
    assert again.meta["mmvssm"]["weights"] == "ema"


def test_foreign_heads():
    weights = {k: v for k, v in classifier_of("Vim", "tiny").items() if k.startswith("backbone")}
    weights["roi_heads.x"] = torch.ones(1)
    with pytest.raises(ValueError, match=r"1 left over: roi_heads\.x; .*--to backbone"):
        convert(weights)
    assert "roi_heads.x" not in convert(weights, to="backbone").state_dict


def renamed(prefix, weights):
    return {f"{prefix}{key}": value for key, value in weights.items()}


@pytest.mark.parametrize("prefix", ["model.", "model.encoder.", "module.net0.model."])
@pytest.mark.parametrize("kind", ["VMamba", "Vim"])
def test_what_code_of_others_put_before_names(prefix, kind):
    """Lightning's ``model.`` and the like; keys without the prefix are not part of the network."""
    weights = classifier_of(kind, next(iter(getattr(mmvssm.models, kind).arch_settings)))
    plain = convert(weights)
    original = to_original(plain)["model"]
    for names in (weights, original):
        given = renamed(prefix, names) | {"criterion.weight": torch.zeros(3)}
        converted = convert({"state_dict": given})
        assert converted.weights.prefix == prefix.removeprefix("module.")
        assert converted.state_dict.keys() == plain.state_dict.keys()


def test_several_networks_behind_prefixes():
    weights = classifier_of("VMamba", "v0-tiny")
    both = renamed("student.", weights) | renamed("teacher.", weights)
    with pytest.raises(ValueError, match=r"several networks, with prefixes student\., teacher\."):
        convert({"state_dict": both})


def test_the_grid_of_a_rectangular_training():
    """The grid is read from our files; for others a square one is assumed, with a message."""
    weights = Vim(PLAIN, img_size=(128, 512)).state_dict(prefix="backbone.")
    weights |= {"head.fc.weight": torch.zeros(5, 16), "head.fc.bias": torch.zeros(5)}
    meta = said("Vim", PLAIN)
    converted = convert({"state_dict": weights, "meta": meta})
    assert converted.found.options["img_size"] == (128, 512)
    del weights["backbone.pos_grid"]
    with pytest.warns(UserWarning, match="assuming 16x16 patches"):
        converted = convert({"state_dict": weights, "meta": meta})
    assert converted.found.options["img_size"] == 256
    assert converted.state_dict["backbone.pos_grid"].shape == (16, 16, 0)
