"""Every published variant has the keys, the shapes and the number of parameters of its weights."""

import re
from pathlib import Path

import pytest
import torch

import mmvssm.models
from mmvssm.checkpoint import map_state_dict
from verifier import READERS, Case

GOLDEN = Path(__file__).parents[1] / "golden"
#: Lists by our type and arch; None for variants without a name.
LISTS = {
    "vmamba/vmambav0_tiny": ("VMamba", "v0-tiny"),
    "vmamba/vmambav0_tiny_renamed": ("VMamba", "v0-tiny"),
    "vmamba/vmambav0_small": ("VMamba", "v0-small"),
    "vmamba/vmambav0_small_renamed": ("VMamba", "v0-small"),
    "vmamba/vmambav0_base": ("VMamba", "v0-base"),
    "vmamba/vmambav0_base_renamed": ("VMamba", "v0-base"),
    "vmamba/vmambav2_tiny_s2l5": ("VMamba", "tiny-s2l5"),
    "vmamba/vmambav2_small_s2l15": ("VMamba", "small-s2l15"),
    "vmamba/vmambav2_base_s2l15": ("VMamba", "base-s2l15"),
    "vmamba/vmambav2_tiny_s1l8": ("VMamba", "tiny-s1l8"),
    "vmamba/vmambav2_small_s1l20": ("VMamba", "small-s1l20"),
    "vmamba/vmambav2_base_s1l20": ("VMamba", "base-s1l20"),
    "vmamba/vmamba_tiny_m2": None,
    "vmamba/vmamba_small_m2": None,
    "vmamba/vmamba_base_m2": None,
    "efficient_vmamba/tiny": ("EfficientVMamba", "tiny"),
    "efficient_vmamba/small": ("EfficientVMamba", "small"),
    "efficient_vmamba/base": ("EfficientVMamba", "base"),
    "efficient_vmamba/small_yaml96": None,
    "efficient_vmamba/tiny_mlp_v2down": None,
    "msvmamba/nano": ("MSVMamba", "nano"),
    "msvmamba/micro": ("MSVMamba", "micro"),
    "msvmamba/tiny": ("MSVMamba", "tiny"),
    "msvmamba/v3_tiny": ("MSVMamba", "v3-tiny"),
    "msvmamba/v3_small": ("MSVMamba", "v3-small"),
    "msvmamba/v3_base": ("MSVMamba", "v3-base"),
    "msvmamba/v3_gated_mini": None,
    "local_mamba/local_vssm_tiny": ("LocalVMamba", "tiny"),
    "local_mamba/local_vssm_small": ("LocalVMamba", "small"),
    "local_mamba/local_vssm_tiny_search": ("LocalVMamba", "tiny-search"),
    "local_mamba/local_vssm_small_search": ("LocalVMamba", "small-search"),
    "local_mamba/local_vim_tiny": ("LocalVim", "tiny"),
    "local_mamba/local_vim_tiny_middle_cls_token": ("LocalVim", "tiny-mid-cls"),
    "local_mamba/local_vim_small": ("LocalVim", "small"),
    "local_mamba/local_vim_small_searched": ("LocalVim", "small-searched"),
    "local_mamba/local_vim_tiny_search": ("LocalVim", "tiny-search"),
    "local_mamba/local_vim_tiny_wo_search": None,
    "vim/vim_tiny": ("Vim", "tiny"),
    "vim/vim_small": ("Vim", "small"),
    "vim/vim_base": ("Vim", "base"),
    "vim/vim_tiny_stride8": ("Vim", "tiny-stride8"),
    "vim/vim_small_stride8": ("Vim", "small-stride8"),
    "vim/vim_tiny_rope_headcls": None,
    "vim/vim_tiny_rope_nocls": None,
    "vim/vim_small_rope_nocls": None,
}


def shapes(state_dict):
    return {key: tuple(value.shape) for key, value in state_dict.items()}


@pytest.mark.parametrize("name", LISTS)
def test_keys_shapes_and_parameter_counts(name):
    folder, _, file = name.partition("/")
    case = Case(GOLDEN / folder / "keys" / f"{file}.json")
    listing = case.meta
    released = {key: torch.empty(shape, device="meta") for key, shape, _ in listing["state_dict"]}
    spec = READERS[folder](case)
    with torch.device("meta"):
        model = spec.build("classification")
    mapped = map_state_dict(released, spec.family, "classification")
    assert shapes(mapped) == shapes(model.state_dict())
    assert sum(p.numel() for p in model.parameters()) == listing["num_params"]

    if LISTS[name] is None:
        return
    backbone, arch = LISTS[name]
    plain = {"Vim", "LocalVim"}
    options = {} if backbone in plain else dict(out_indices=(3,))
    with torch.device("meta"):
        named = getattr(mmvssm.models, backbone)(arch, **options)
    assert shapes(named.state_dict()) == shapes(model.backbone.state_dict())
    (row,) = re.findall(rf"^ *``{arch}``  .*$", type(named).__doc__, re.MULTILINE)
    assert f"{listing['num_params']:,}".replace(",", " ") in row


def test_every_list_and_every_name_is_compared():
    files = GOLDEN.glob("*/keys/*.json")
    assert {f"{file.parts[-3]}/{file.stem}" for file in files} == LISTS.keys()
    backbones = {backbone for backbone, _ in filter(None, LISTS.values())}
    names = {(b, arch) for b in backbones for arch in getattr(mmvssm.models, b).arch_settings}
    assert names == set(filter(None, LISTS.values()))
