import pytest
import torch

from mmvssm.checkpoint import map_key, map_state_dict


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("patch_embed.proj.weight", "patch_embed.conv1.weight"),
        ("patch_embed.norm.bias", "patch_embed.norm1.bias"),
        ("patch_embed.0.weight", "patch_embed.conv1.weight"),
        ("patch_embed.2.weight", "patch_embed.norm1.weight"),
        ("patch_embed.5.bias", "patch_embed.conv2.bias"),
        ("patch_embed.7.running_mean", "patch_embed.norm2.running_mean"),
        ("layers.2.blocks.11.ln_1.weight", "stages.2.blocks.11.norm1.weight"),
        ("layers.2.blocks.11.norm.weight", "stages.2.blocks.11.norm1.weight"),
        ("layers.2.blocks.1.norm2.weight", "stages.2.blocks.1.norm2.weight"),
        ("layers.0.blocks.0.self_attention.A_logs", "stages.0.blocks.0.mixer.A_logs"),
        ("layers.0.blocks.0.op.conv2d.weight", "stages.0.blocks.0.mixer.conv2d.weight"),
        ("layers.0.blocks.0.op.conv2d.1.weight", "stages.0.blocks.0.mixer.conv2d.weight"),
        ("layers.0.blocks.0.op.out_norm.bias", "stages.0.blocks.0.mixer.out_norm.bias"),
        ("layers.0.blocks.0.op.out_norm.1.weight", "stages.0.blocks.0.mixer.out_norm.weight"),
        ("layers.0.blocks.0.op.out_norm.0.weight", "stages.0.blocks.0.mixer.out_norm.0.weight"),
        ("layers.0.blocks.0.op.out_norm.2.weight", "stages.0.blocks.0.mixer.out_norm.1.weight"),
        ("layers.0.downsample.norm.weight", "stages.0.downsample.norm.weight"),
        ("layers.0.downsample.reduction.weight", "stages.0.downsample.reduction.weight"),
        ("layers.0.downsample.1.weight", "stages.0.downsample.conv.weight"),
        ("layers.0.downsample.3.weight", "stages.0.downsample.norm.weight"),
        ("pos_embed", "pos_embed"),
    ],
)
def test_trunk(key, expected):
    for task in ("classification", "dense"):
        assert map_key(key, "vmamba", task) == f"backbone.{expected}"


@pytest.mark.parametrize(
    ("key", "classification", "dense"),
    [
        ("norm.weight", "backbone.norm3.weight", None),
        ("classifier.norm.weight", "backbone.norm3.weight", None),
        ("head.bias", "head.fc.bias", None),
        ("classifier.head.weight", "head.fc.weight", None),
        ("outnorm2.bias", None, "backbone.norm2.bias"),
        ("outnorm3.weight", None, "backbone.norm3.weight"),
    ],
)
@pytest.mark.parametrize("family", ["vmamba", "efficient_vmamba", "msvmamba", "local_vmamba"])
def test_norms_and_heads(family, key, classification, dense):
    assert map_key(key, family, "classification") == classification
    assert map_key(key, family, "dense") == dense


def test_own_names_stay():
    mixer = "backbone.stages.0.blocks.0.mixer"
    keys = ["backbone.stages.0.blocks.0.norm1.weight", "backbone.norm3.bias", "head.fc.weight"]
    # a layer norm, then a convolution as out-norm
    keys += [f"{mixer}.out_norm.0.bias", f"{mixer}.out_norm.1.weight", f"{mixer}.conv2d.weight"]
    values = {key: torch.randn(2, 2) for key in keys}
    assert map_state_dict(values, "vmamba") == values


def test_linear_weights_stored_as_convolutions():
    weight, depthwise = torch.randn(6, 4, 1, 1), torch.randn(6, 1, 1, 1)
    mapped = map_state_dict(
        {
            "layers.0.blocks.0.op.in_proj.weight": weight,
            "layers.0.blocks.0.op.conv2d.weight": depthwise,
            "classifier.head.weight": weight,
        },
        "vmamba",
    )
    assert torch.equal(mapped["backbone.stages.0.blocks.0.mixer.in_proj.weight"], weight[..., 0, 0])
    assert mapped["backbone.stages.0.blocks.0.mixer.conv2d.weight"] is depthwise
    assert mapped["head.fc.weight"].shape == (6, 4)


def test_whole_detectors_keep_their_other_parts():
    value = torch.zeros(1)
    mapped = map_state_dict(
        {
            "backbone.layers.0.blocks.0.ln_1.weight": value,
            "backbone.outnorm0.weight": value,
            "neck.layers.0.op.weight": value,
        },
        "vmamba",
        "dense",
    )
    assert set(mapped) == {
        "backbone.stages.0.blocks.0.norm1.weight",
        "backbone.norm0.weight",
        "neck.layers.0.op.weight",
    }


@pytest.mark.parametrize("family", ["vmamba", "efficient_vmamba", "msvmamba", "local_vmamba"])
def test_first_release_names_of_whole_segmentors(family):
    """They are renamed behind the prefix alone: heads have norms of such names, too."""
    mixer = "mixer.ss2d" if family == "efficient_vmamba" else "mixer"
    names = {
        "backbone.patch_embed.proj.weight": "backbone.patch_embed.conv1.weight",
        "backbone.patch_embed.norm.bias": "backbone.patch_embed.norm1.bias",
        "backbone.layers.1.blocks.0.ln_1.bias": "backbone.stages.1.blocks.0.norm1.bias",
        "backbone.layers.1.blocks.0.self_attention.Ds": f"backbone.stages.1.blocks.0.{mixer}.Ds",
        "backbone.layers.1.downsample.norm.bias": "backbone.stages.1.downsample.norm.bias",
        "backbone.outnorm2.weight": "backbone.norm2.weight",
        "norm.weight": "norm.weight",
        "decode_head.ln_1.weight": "decode_head.ln_1.weight",
    }
    mapped = map_state_dict(dict.fromkeys(names, torch.zeros(1)), family, "dense")
    assert list(mapped) == list(names.values())


def test_out_norm_of_nightly_files():
    """A depthwise convolution without the number that the current code gives it."""
    weight = torch.randn(4, 1, 3, 3)
    mapped = map_state_dict({"layers.0.blocks.0.op.out_norm.weight": weight}, "vmamba")
    assert mapped["backbone.stages.0.blocks.0.mixer.out_norm.weight"] is weight


def test_two_keys_for_one_name():
    keys = ("layers.0.blocks.0.ln_1.bias", "layers.0.blocks.0.norm.bias")
    with pytest.raises(ValueError, match=r"keys .*ln_1.bias and .*norm.bias are both"):
        map_state_dict({key: torch.zeros(1) for key in keys}, "vmamba")


def test_unknown_family_and_task():
    with pytest.raises(ValueError, match=r"family must be one of efficient_vmamba, .*got 'resnet'"):
        map_key("a", "resnet", "dense")
    with pytest.raises(ValueError, match="task must be one of classification, dense, got 'det'"):
        map_key("a", "vmamba", "det")
