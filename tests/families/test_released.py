"""Released weights of every variant: names, network, family and arch, from its list of keys."""

import re
from pathlib import Path

import pytest
import torch

from mmvssm.checkpoint import ArchError, KeyMap, convert, find_arch, find_family, map_state_dict
from mmvssm.families import FAMILIES
from mmvssm.families.key_map import release_names
from mmvssm.families.recognise import MixedFamiliesError, UnknownFamilyError, shapes_of
from verifier import READERS, Case

GOLDEN = Path(__file__).parents[1] / "golden"
LISTS = {f"{file.parts[-3]}/{file.stem}": file for file in sorted(GOLDEN.glob("*/keys/*.json"))}
#: Lists of networks without a name here; those of `BY_OPTIONS` follow from a named one.
BY_OPTIONS = {"vim_tiny_rope_headcls", "vim_tiny_rope_nocls", "vim_small_rope_nocls"}
UNNAMED = {"v3_gated_mini", "small_yaml96", "tiny_mlp_v2down", *BY_OPTIONS}
#: Variants without a list: a similar variant's list, which `unlisted` adapts.
UNLISTED = {
    ("vim", "base-stride8"): "vim/vim_base",
    ("vmamba", "tiny-0220"): "vmamba/vmambav2_tiny_s2l5",
}
#: The same, by folder as well: another family has a network of that name.
UNNAMED |= {"mambavision/micro", "mambavision/micro_ls"}
#: Names that differ only in windows, which have no weights, and the name that has the list.
SAME_WEIGHTS = {"large2-512": "large2", "large3-512": "large3-256"}
#: Keys that only classifiers have, in the names of all releases.
CLASSIFIER = ("classifier.", "norm.", "head.", "norm_f.", "cls_token")
OUT_NORM = {"mambavision": dict(out_norm="bn")}
by_list = pytest.mark.parametrize("name", LISTS)


def family_of(name):
    folder, _, file = name.partition("/")
    local = "local_vim" if file.startswith("local_vim") else "local_vmamba"
    return FAMILIES[local if folder == "local_mamba" else folder]


def arch_of(name):
    """Return our name of the variant, derived from the authors'; None for one without a name."""
    file = name.partition("/")[2]
    if UNNAMED & {name, file}:
        return None
    arch = re.sub(r"^(vmamba|vmambav2|vim|local_vim|local_vssm)_", "", file)
    arch = arch.removesuffix("_renamed").replace("vmambav0", "v0")
    arch = arch.replace("middle_cls_token", "mid_cls").replace("wo_search", "unsearched")
    arch = "large3_256" if arch == "large3" else arch
    return arch.replace("_", "-")


def read(name):
    """Return tensors without values, as in a file with this list of keys."""
    return {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for key, shape, dtype in Case(LISTS[name]).meta["state_dict"]
    }


def unlisted(arch):
    """Return tensors without values of a variant without a list, in the authors' names."""
    released = read(UNLISTED["vim" if "stride" in arch else "vmamba", arch])
    if arch == "base-stride8":
        # 27 x 27 patches and the class token
        return {**released, "pos_embed": torch.empty(1, 27**2 + 1, 768, device="meta")}
    # a block less in the third stage, and a gate
    return {
        key: torch.cat([value, value]) if key.endswith("op.in_proj.weight") else value
        for key, value in released.items()
        if not key.startswith("layers.2.blocks.4.")
    }


def without_grid(shapes):
    """Return all but the grid that our models store with a position embedding, not a weight."""
    return {key: shape for key, shape in shapes.items() if not key.endswith("pos_grid")}


def filled(tensors):
    """Return random tensors of the same keys and dtypes, with no side longer than 2."""
    return {
        key: torch.randint(2**20, [min(side, 2) for side in value.shape]).to(value.dtype)
        for key, value in tensors.items()
    }


def kinds(tensors):
    return {key: (value.shape, value.dtype) for key, value in tensors.items()}


def assert_there_and_back(released, family, task):
    names = release_names(released, family)
    there = map_state_dict(released, family, task)
    again = KeyMap(family, task).to_original(there, names=names)
    assert kinds(again) == kinds(released)
    if not any(value.is_meta for value in released.values()):
        assert all(torch.equal(again[key], value) for key, value in released.items())


def test_every_variant_has_a_list():
    named = {(family_of(name).name, arch_of(name)) for name in LISTS if arch_of(name)}
    archs = {(f.name, arch) for f in FAMILIES.values() for arch in f.backbone.arch_settings}
    listed = named | UNLISTED.keys()
    assert listed == {(family, SAME_WEIGHTS.get(arch, arch)) for family, arch in archs}
    assert not named & UNLISTED.keys()
    assert {*LISTS, *(name.partition("/")[2] for name in LISTS)} >= UNNAMED


@by_list
def test_classifiers_come_back(name):
    """Keys, shapes, types and values of every list come back as they were."""
    released, family = read(name), family_of(name)
    is_old = name.startswith("vmamba/vmambav0") and not name.endswith("_renamed")
    assert release_names(released, family) == ("first-release" if is_old else "current")
    assert_there_and_back(released, family, "classification")
    assert_there_and_back(filled(released), family, "classification")


@by_list
def test_detectors_and_segmentors_come_back(name):
    """The backbone has the same names after its prefix; heads and necks of the library stay."""
    family = family_of(name)
    dense = {key: value for key, value in read(name).items() if not key.startswith(CLASSIFIER)}
    out_norm = {"local_vim": "outnorm_{}", "vim": None}.get(family.name, "outnorm{}")
    for i in (0, 1, 3) if out_norm else ():
        dense |= {f"{out_norm.format(i)}.{p}": torch.empty(4) for p in ("weight", "bias")}
    dense = {f"backbone.{key}": value for key, value in dense.items()}
    heads = "neck.lateral_convs.0.conv.weight", "decode_head.norm.weight", "roi_head.mlp.fc1.bias"
    dense |= dict.fromkeys(heads, torch.empty(4))
    assert_there_and_back(filled(dense), family, "dense")


@by_list
def test_networks(name):
    """Keys, shapes and numbers of parameters are those of our model, and in its docstring.

    The model is built from the authors' options; that of the arch has the same modules.
    """
    case, arch = Case(LISTS[name]), arch_of(name)
    spec = READERS[name.partition("/")[0]](case)
    with torch.device("meta"):
        model = spec.build("classification")
    mapped = map_state_dict(read(name), spec.family, "classification")
    assert shapes_of(mapped) == without_grid(shapes_of(model.state_dict()))
    count = case.meta["num_params"]
    assert sum(p.numel() for p in model.parameters()) == count
    if arch is not None:
        backbone = type(model.backbone)
        assert_documented(backbone, arch, count)
        options = {} if "vim" in spec.family else dict(out_indices=3)
        options |= OUT_NORM.get(spec.family, {})
        with torch.device("meta"):
            named = backbone(arch, **options)
        assert modules(named) == modules(model.backbone)


def modules(network):
    """Return the modules and their options as text, except rates of drop path."""
    return re.sub(r"drop_prob=[\d.e-]+", "", str(network))


def assert_documented(backbone, arch, count):
    (row,) = re.findall(rf"^ *``{arch}``  .*$", backbone.__doc__, re.MULTILINE)
    assert f"{count:,}".replace(",", " ") in row


@pytest.mark.parametrize(("name", "arch"), UNLISTED)
def test_networks_without_a_list(name, arch):
    family, released = FAMILIES[name], unlisted(arch)
    assert_there_and_back(filled(released), family, "classification")
    found = recognise(released)
    assert (found.family, found.arch, found.others) == (family, arch, ())
    assert found.options == ({} if name == "vim" else dict(out_indices=(3,)))
    assert_documented(family.backbone, arch, sum(value.numel() for value in released.values()))


def recognise(weights):
    """Return the network recognised from a classifier of the authors, with just these weights."""
    family = find_family(weights)
    mapped = map_state_dict(weights, family)
    assert find_family(mapped) is family
    given = {
        k.removeprefix("backbone."): v for k, v in shapes_of(mapped).items() if "head" not in k
    }
    found = find_arch(given, family)
    assert without_grid(found.shapes()) == given
    return found


@by_list
def test_recognition(name):
    """Networks with a name or known options are recognised; others need a config."""
    weights, family, arch = read(name), family_of(name), arch_of(name)
    if arch is None and name.partition("/")[2] not in BY_OPTIONS:
        with pytest.raises((ArchError, UnknownFamilyError), match=r"--arch CONFIG.py|--import"):
            convert(weights)
        return
    found = recognise(weights)
    assert found.family is family
    if arch is not None:
        assert arch in (found.arch, *found.others)
        options = {} if "vim" in family.name else dict(out_indices=(3,))
        # a batch norm before the head
        assert found.options == (options | OUT_NORM.get(family.name, {}))


@pytest.mark.parametrize("prefix", ["", "backbone.", "backbone.net."])
@pytest.mark.parametrize("name", ["vmamba/vmambav0_tiny", "vim/vim_tiny", "msvmamba/v3_tiny"])
def test_families_of_detectors(prefix, name):
    keys = [prefix + key for key in read(name)]
    keys += ["neck.layers.0.mixer.attn.weight", "decode_head.layers.0.blocks.0.conv_branch.weight"]
    keys += ["backbone.fpn1.0.weight", "backbone.simfp_2.0.weight"]
    assert find_family(keys) is family_of(name)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("vmamba/vmambav0_tiny", "vim/vim_tiny"),
        ("vmamba/vmambav2_tiny_s1l8", "msvmamba/nano"),
        ("vim/vim_tiny", "local_mamba/local_vim_tiny"),
        ("msvmamba/v3_tiny", "efficient_vmamba/tiny"),
    ],
)
def test_mixed_families(first, second):
    with pytest.raises(MixedFamiliesError, match=r"mix families: (\w+) \(.+\) and (\w+) \(") as e:
        find_family([*read(first), *read(second)])
    assert all(f"{family_of(name).name} (layers." in str(e.value) for name in (first, second))
