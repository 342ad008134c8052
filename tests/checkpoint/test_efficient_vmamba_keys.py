"""Names of EfficientVMamba's parameters in files of its authors."""

import pytest
import torch

from mmvssm.checkpoint import map_key, map_state_dict
from mmvssm.models import EfficientVMamba

FAMILY = "efficient_vmamba"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("patch_embed.0.weight", "patch_embed.conv1.weight"),
        ("patch_embed.proj.weight", "patch_embed.conv1.weight"),
        ("patch_embed.norm.bias", "patch_embed.norm1.bias"),
        ("layers.0.blocks.1.norm.weight", "stages.0.blocks.1.norm1.weight"),
        ("layers.0.blocks.1.ln_1.weight", "stages.0.blocks.1.norm1.weight"),
        ("layers.0.blocks.1.norm2.weight", "stages.0.blocks.1.norm2.weight"),
        ("layers.1.blocks.0.mlp.fc1.bias", "stages.1.blocks.0.mlp.fc1.bias"),
        ("layers.1.blocks.0.op.A_logs", "stages.1.blocks.0.mixer.ss2d.A_logs"),
        ("layers.1.blocks.0.self_attention.Ds", "stages.1.blocks.0.mixer.ss2d.Ds"),
        ("layers.1.blocks.0.op.out_norm.bias", "stages.1.blocks.0.mixer.ss2d.out_norm.bias"),
        ("layers.0.blocks.0.conv_branch.0.bias", "stages.0.blocks.0.mixer.conv_branch.dwconv.bias"),
        (
            "layers.0.blocks.0.conv_branch.1.running_var",
            "stages.0.blocks.0.mixer.conv_branch.norm.running_var",
        ),
        ("layers.0.blocks.0.conv_branch.3.bias", "stages.0.blocks.0.mixer.conv_branch.pwconv.bias"),
        ("layers.0.blocks.0.se.norm.bias", "stages.0.blocks.0.mixer.gate.norm.bias"),
        (
            "layers.0.blocks.0.se.global_reduce.bias",
            "stages.0.blocks.0.mixer.gate.global_reduce.bias",
        ),
        ("layers.1.downsample.norm.bias", "stages.1.downsample.norm.bias"),
        ("layers.1.downsample.1.bias", "stages.1.downsample.conv.bias"),
        ("layers.2.1.conv_pw.0.weight", "stages.2.blocks.0.expand.weight"),
        ("layers.2.1.conv_pw.1.running_mean", "stages.2.blocks.0.norm1.running_mean"),
        ("layers.2.11.conv_dw.0.weight", "stages.2.blocks.10.dwconv.weight"),
        ("layers.3.2.conv_dw.1.bias", "stages.3.blocks.1.norm2.bias"),
        ("layers.3.2.se.conv_reduce.weight", "stages.3.blocks.1.se.fc1.weight"),
        ("layers.3.2.se.conv_expand.bias", "stages.3.blocks.1.se.fc2.bias"),
        ("layers.3.2.conv_pw2.0.weight", "stages.3.blocks.1.project.weight"),
        (
            "layers.3.2.conv_pw2.1.num_batches_tracked",
            "stages.3.blocks.1.norm3.num_batches_tracked",
        ),
        ("layers.2.6.reduction.weight", "stages.2.downsample.reduction.weight"),
        ("layers.2.11.norm.weight", "stages.2.downsample.norm.weight"),
        ("layers.2.6.1.weight", "stages.2.downsample.conv.weight"),
        ("layers.2.11.3.bias", "stages.2.downsample.norm.bias"),
    ],
)
def test_trunk(key, expected):
    for task in ("classification", "dense"):
        assert map_key(key, FAMILY, task) == f"backbone.{expected}"


@pytest.mark.parametrize("downsample", ["patch_merge", "conv2"])
def test_own_names_and_shapes_stay(downsample):
    arch = dict(embed_dims=8, depths=(1, 1, 2, 1), downsample=downsample, mlp_ratio=2)
    with torch.device("meta"):
        values = EfficientVMamba(arch).state_dict(prefix="backbone.")
    mapped = map_state_dict(values, FAMILY, "dense")
    assert mapped.keys() == values.keys()
    assert all(mapped[key] is value for key, value in values.items())
