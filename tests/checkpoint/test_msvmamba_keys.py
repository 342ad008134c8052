"""Names of MSVMamba's parameters in files of its authors."""

import pytest
import torch

from mmvssm.checkpoint import map_key, map_state_dict
from mmvssm.models import MSVMamba

FAMILY = "msvmamba"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("patch_embed.0.weight", "patch_embed.conv1.weight"),
        ("patch_embed.proj.weight", "patch_embed.conv1.weight"),
        ("patch_embed.norm.bias", "patch_embed.norm1.bias"),
        ("patch_embed.5.weight", "patch_embed.conv2.weight"),
        ("patch_embed.7.weight", "patch_embed.norm2.weight"),
        ("layers.0.blocks.1.norm.weight", "stages.0.blocks.1.norm1.weight"),
        ("layers.0.blocks.1.ln_1.weight", "stages.0.blocks.1.norm1.weight"),
        ("layers.0.blocks.1.norm2.weight", "stages.0.blocks.1.norm2.weight"),
        ("layers.1.blocks.0.op.A_logs", "stages.1.blocks.0.mixer.A_logs"),
        ("layers.1.blocks.0.self_attention.Ds", "stages.1.blocks.0.mixer.Ds"),
        ("layers.2.blocks.11.op.conv2d.bias", "stages.2.blocks.11.mixer.conv2d.bias"),
        ("layers.2.blocks.11.op.conv2d_b1.bias", "stages.2.blocks.11.mixer.small_conv2d.bias"),
        ("layers.3.blocks.0.op.se.fc.0.weight", "stages.3.blocks.0.mixer.se.fc1.weight"),
        ("layers.3.blocks.0.op.se.fc.2.weight", "stages.3.blocks.0.mixer.se.fc2.weight"),
        ("layers.3.blocks.0.op.out_norm.weight", "stages.3.blocks.0.mixer.out_norm.weight"),
        ("layers.3.blocks.0.convFFN.linear1.bias", "stages.3.blocks.0.mlp.fc1.bias"),
        ("layers.3.blocks.0.convFFN.linear2.weight", "stages.3.blocks.0.mlp.fc2.weight"),
        ("layers.3.blocks.0.convFFN.dwc.weight", "stages.3.blocks.0.mlp.dwconv.weight"),
        ("layers.1.downsample.reduction.weight", "stages.1.downsample.reduction.weight"),
        ("layers.1.downsample.norm.bias", "stages.1.downsample.norm.bias"),
        ("layers.1.downsample.1.weight", "stages.1.downsample.conv.weight"),
        ("layers.1.downsample.3.weight", "stages.1.downsample.norm.weight"),
    ],
)
def test_trunk(key, expected):
    for task in ("classification", "dense"):
        assert map_key(key, FAMILY, task) == f"backbone.{expected}"


def test_own_names_and_shapes_stay():
    with torch.device("meta"):
        values = MSVMamba(dict(embed_dims=8, depths=(1, 1, 2, 1))).state_dict(prefix="backbone.")
    mapped = map_state_dict(values, FAMILY, "dense")
    assert mapped.keys() == values.keys()
    assert all(mapped[key] is value for key, value in values.items())


def test_linear_weights_held_as_convolutions():
    """Both forms are in files; the layers of the feed-forward are convolutions here, too."""
    block = "layers.0.blocks.0"
    names = ("op.in_proj", "op.out_proj", "op.se.fc.0", "op.se.fc.2", "convFFN.linear1")
    released = {f"{block}.{name}.weight": torch.randn(4, 6, 1, 1) for name in names}
    mapped = map_state_dict(released, FAMILY)
    shapes = {key.removeprefix("backbone.stages.0.blocks.0."): v.shape for key, v in mapped.items()}
    linear = dict.fromkeys(("in_proj", "out_proj", "se.fc1", "se.fc2"), (4, 6))
    expected = {f"mixer.{name}.weight": shape for name, shape in linear.items()}
    assert shapes == {**expected, "mlp.fc1.weight": (4, 6, 1, 1)}
