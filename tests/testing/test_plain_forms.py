"""Forms of cases beside the given ones, made from them: small networks, weights by the recipe."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmvssm.checkpoint import map_state_dict
from mmvssm.models import LocalVMamba, Vim
from mmvssm.testing.families import READERS
from mmvssm.testing.golden import verify_file
from mmvssm.testing.recipe import fill_value, make_input

GOLDEN = Path(__file__).parents[1] / "golden"
SEG = GOLDEN / "vim" / "vim_tiny_seg__96x96"
TOKENS = GOLDEN / "local_mamba" / "local_vim_tiny_middle_cls_token__80x80"
VSSM = GOLDEN / "local_mamba" / "local_vssm_tiny__64x96__vfix"


def read_meta(case):
    return json.loads(case.with_suffix(".json").read_text())


def read_data(case):
    with np.load(case.with_suffix(".npz")) as arrays:
        return {key: arrays[key] for key in arrays.files}


def segmentor(**words):
    """A case of four layers on a grid of 6 x 6."""
    meta = read_meta(SEG)
    meta["build"].update(depth=4, out_indices=[0, 1, 2, 3], **words)
    layers = tuple(f"layers.{i}." for i in range(4))
    meta["state_dict"] = [
        entry
        for entry in meta["state_dict"]
        if not entry[0].startswith("layers.") or entry[0].startswith(layers)
    ]
    return meta


def segmentor_of_8(**words):
    """The same of patches of 8, whose pyramid has one layer with weights."""
    meta = segmentor(**words, patch_size=8, stride=8, img_size=48)
    meta["state_dict"] = [
        *(e for e in meta["state_dict"] if not e[0].startswith(("fpn", "patch_embed.proj.w"))),
        ["patch_embed.proj.weight", [192, 3, 8, 8], "float32"],
        ["fpn1.0.weight", [192, 192, 2, 2], "float32"],
        ["fpn1.0.bias", [192], "float32"],
    ]
    meta["input_shape"] = [2, 3, 48, 48]
    return meta


def weights_of(meta):
    return {
        key: torch.from_numpy(fill_value(key, shape, dtype))
        for key, shape, dtype in meta["state_dict"]
    }


def load(backbone, weights, family):
    """The weights of the backbone's own layers, without norms of outputs."""
    keys = ("patch_embed.", "pos_embed", "rope.", "layers.")
    weights = {key: value for key, value in weights.items() if key.startswith(keys)}
    mapped = map_state_dict(weights, family, "dense")
    backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in mapped.items()})
    return backbone.eval()


def verify(tmp_path, meta, data):
    (tmp_path / "case.json").write_text(json.dumps(meta))
    np.savez(tmp_path / "case.npz", **data)
    (result,) = verify_file(tmp_path / "case.json", "auto")
    return result


def store(meta, outputs):
    """Arrays of a case that stores ``outputs`` whole."""
    meta["outputs"] = list(outputs)
    data = {}
    for name, value in outputs.items():
        value = value.detach().numpy()
        data |= {name: value.reshape(-1), f"{name}.index": np.arange(value.size)}
        data[f"{name}.shape"] = np.array(value.shape)
    return data


def features(meta, feature):
    """The segmentor's four maps before its norm, and its weights."""
    weights = weights_of(meta)
    patch_size = meta["build"]["patch_size"]
    arch = dict(embed_dims=192, num_layers=4, patch_size=patch_size, cls_token="none")
    arch["rope"] = meta["build"]["if_rope"]
    common = dict(img_size=meta["build"]["img_size"], out_type="featmap", out_norm=False)
    backbone = Vim(arch, **common, out_indices=(0, 1, 2, 3), feature=feature)
    image = torch.from_numpy(make_input(meta["input_shape"], meta["input_key"]))
    with torch.no_grad():
        maps = load(backbone, weights, "vim")(image)
    return list(maps), weights


def upsample(x, weights, name):
    return F.conv_transpose2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2)


def upsample_4x(x, weights):
    statistics = (weights[f"fpn1.1.{name}"] for name in ("running_mean", "running_var"))
    x = F.batch_norm(
        upsample(x, weights, "fpn1.0"),
        *statistics,
        weights["fpn1.1.weight"],
        weights["fpn1.1.bias"],
    )
    return upsample(F.gelu(x), weights, "fpn1.3")


def test_the_last_norm_after_the_last_sum(tmp_path):
    meta = segmentor(use_residual_as_feature=True, last_layer_process="add & norm")
    maps, weights = features(meta, "residual")
    scale = weights["norm_f.weight"].requires_grad_()
    last = maps[3] * (maps[3].square().mean(1, keepdim=True) + 1e-5).rsqrt()
    maps[3] = last * scale[:, None, None]
    outputs = {f"stage{k}": x for k, x in enumerate(maps)}
    outputs |= dict(fpn0=upsample_4x(maps[0], weights), fpn1=upsample(maps[1], weights, "fpn2.0"))
    outputs |= dict(fpn2=maps[2], fpn3=F.max_pool2d(maps[3], 2))
    (maps[3] * torch.from_numpy(make_input(maps[3].shape, "cotangent"))).sum().backward()
    data = store(meta, outputs)
    data["gradnorm.keys"] = np.array(["norm_f.weight"])
    data["gradnorm.values"] = np.array([scale.grad.norm().item()])
    result = verify(tmp_path, meta, data)
    assert result.status == "passed" and "of 9 compared" in result.detail, result
    meta["build"]["last_layer_process"] = "add"
    data = {key: value for key, value in data.items() if not key.startswith("gradnorm")}
    result = verify(tmp_path, meta, data)
    assert result.status == "failed" and result.detail.startswith("worst")


def test_the_pyramid_of_patches_of_8(tmp_path):
    meta = segmentor_of_8()
    maps, weights = features(meta, "mixer")
    outputs = {f"stage{k}": x for k, x in enumerate(maps)}
    outputs |= dict(fpn0=upsample(maps[0], weights, "fpn1.0"), fpn1=maps[1])
    outputs |= dict(fpn2=F.max_pool2d(maps[2], 2), fpn3=F.max_pool2d(maps[3], 4))
    result = verify(tmp_path, meta, store(meta, outputs))
    assert result.status == "passed" and "of 8 compared" in result.detail, result


def test_both_at_once(tmp_path):
    """With a rotary embedding, under which sums before the last are turned once more."""
    words = dict(if_rope=True, if_rope_residual=True)
    words |= dict(use_residual_as_feature=True, last_layer_process="add & norm")
    meta = segmentor_of_8(**words)
    meta["state_dict"] += [[f"rope.freqs_{name}", [36, 192], "float32"] for name in ("cos", "sin")]
    maps, weights = features(meta, "residual")
    norm = F.rms_norm(maps[3].permute(0, 2, 3, 1), [192], weights["norm_f.weight"], 1e-5)
    outputs = dict(stage0=maps[0], stage3=norm.permute(0, 3, 1, 2).contiguous())
    outputs |= dict(fpn0=upsample(maps[0], weights, "fpn1.0"))
    assert verify(tmp_path, meta, store(meta, outputs)).status == "passed"


def test_words_left_out_and_without_effect(tmp_path):
    meta = read_meta(SEG)
    del meta["build"]["out_indices"]
    # mixers' outputs pass no norm, whatever the last sum would do
    meta["build"]["last_layer_process"] = "add & norm"
    result = verify(tmp_path, meta, read_data(SEG))
    assert result.status == "passed", result


def test_tokens_without_norms(tmp_path):
    meta = read_meta(TOKENS)
    meta["build"]["out_indices"] = None
    meta["state_dict"] = [e for e in meta["state_dict"] if not e[0].startswith("outnorm_")]
    result = verify(tmp_path, meta, read_data(TOKENS))
    assert result.status == "passed", result


@pytest.mark.parametrize("stages", [(1, 3), (2, 0), (1,)])
def test_some_stages_of_local_vmamba(tmp_path, stages):
    meta = read_meta(VSSM)
    directions = meta["build"]["directions"][:4]
    meta["build"].update(
        depths=[1] * 4, directions=directions, out_indices=list(stages), in_chans=1
    )
    first = tuple(f"layers.{i}.{part}" for i in range(4) for part in ("blocks.0.", "downsample."))
    kept = ("patch_embed.", *(f"outnorm{i}." for i in stages), *first)
    meta["state_dict"] = [e for e in meta["state_dict"] if e[0].startswith(kept)]
    for entry in meta["state_dict"]:
        if entry[0] == "patch_embed.0.weight":
            entry[1] = [96, 1, 4, 4]
    meta["input_shape"] = [1, 1, 32, 48]
    weights = weights_of(meta)
    arch = dict(embed_dims=96, depths=(1, 1, 1, 1))
    backbone = LocalVMamba(arch, directions, in_channels=1, out_norm=False)
    image = torch.from_numpy(make_input(meta["input_shape"], meta["input_key"]))
    with torch.no_grad():
        maps = load(backbone, weights, "local_vmamba")(image)
    outputs = {}
    for i in stages:
        norm = (weights[f"outnorm{i}.weight"], weights[f"outnorm{i}.bias"])
        x = F.layer_norm(maps[i].permute(0, 2, 3, 1), norm[0].shape, *norm, 1e-5)
        outputs[f"stage{i}"] = x.permute(0, 3, 1, 2).contiguous()
    result = verify(tmp_path, meta, store(meta, outputs))
    assert result.status == "passed", result
    classifier = READERS["local_mamba"](meta["build"]).build("classification")
    assert classifier.backbone.out_indices == (3,)
