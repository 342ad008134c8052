"""The simple feature pyramid against a plain implementation of the reference, with its keys."""

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS

from mmvssm.checkpoint import map_state_dict
from mmvssm.models import SimpleFeaturePyramid
from verifier import fill_value

# The pyramid's entries in a detector of 16 channels, of which it makes 12: as the reference
# names and stores them.
REFERENCE = {
    "simfp_2.0.weight": (16, 8, 2, 2),
    "simfp_2.0.bias": (8,),
    "simfp_2.1.weight": (8,),
    "simfp_2.1.bias": (8,),
    "simfp_2.3.weight": (8, 4, 2, 2),
    "simfp_2.3.bias": (4,),
    "simfp_3.0.weight": (16, 8, 2, 2),
    "simfp_3.0.bias": (8,),
}
LEVELS = {"simfp_2": (4, 4), "simfp_3": (1, 8), "simfp_4": (0, 16), "simfp_5": (1, 16)}
for level, (first, channels) in LEVELS.items():
    for i, shape in enumerate([(12, channels, 1, 1), (12, 12, 3, 3)], first):
        REFERENCE[f"{level}.{i}.weight"] = shape
        REFERENCE[f"{level}.{i}.norm.weight"] = REFERENCE[f"{level}.{i}.norm.bias"] = (12,)


def necks_of(weights):
    """Return a backbone's pyramid under our names, by the key map of Vim's dense models."""
    mapped = map_state_dict({f"backbone.{k}": v for k, v in weights.items()}, "vim", "dense")
    return {key.removeprefix("neck."): value for key, value in mapped.items()}


@pytest.fixture
def weights():
    return {key: torch.from_numpy(fill_value(key, shape)) for key, shape in REFERENCE.items()}


@pytest.fixture
def neck(weights):
    """Build the neck with these weights, strictly loaded by the key map."""
    neck = SimpleFeaturePyramid(16, 12)
    neck.load_state_dict(necks_of(weights))
    return neck.double().eval()


def norm_over_channels(x, weight, bias):
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).square().mean(1, keepdim=True)
    x = (x - mean) / (variance + 1e-6).sqrt()
    return x * weight[:, None, None] + bias[:, None, None]


def reference_levels(weights, x):
    """Return ``p2`` to ``p6`` of the map ``x``, following the description of the reference."""

    def deconv(x, key):
        return F.conv_transpose2d(x, weights[f"{key}.weight"], weights[f"{key}.bias"], stride=2)

    x4 = deconv(x, "simfp_2.0")
    x4 = norm_over_channels(x4, weights["simfp_2.1.weight"], weights["simfp_2.1.bias"])
    x4 = deconv(0.5 * x4 * (1 + torch.erf(x4 / 2**0.5)), "simfp_2.3")
    outs = []
    inputs = [x4, deconv(x, "simfp_3.0"), x, F.max_pool2d(x, 2)]
    for level, out in zip(LEVELS, inputs):
        for i in (LEVELS[level][0], LEVELS[level][0] + 1):
            weight = weights[f"{level}.{i}.weight"]
            out = F.conv2d(out, weight, padding=weight.shape[-1] // 2)
            norm = weights[f"{level}.{i}.norm.weight"], weights[f"{level}.{i}.norm.bias"]
            out = norm_over_channels(out, *norm)
        outs.append(out)
    return [*outs, outs[-1][..., ::2, ::2]]


@pytest.mark.parametrize("size", [(6, 6), (5, 7)])
def test_levels_of_the_reference(neck, weights, size):
    # small values, at which the eps of the norms counts
    x = 1e-3 * torch.randn(2, 16, *size, dtype=torch.double)
    expected = reference_levels({key: value.double() for key, value in weights.items()}, x)
    got = neck((x,))
    assert len(got) == len(expected)
    for level, (one, other) in enumerate(zip(got, expected), 2):
        torch.testing.assert_close(one, other, msg=lambda text, i=level: f"p{i}: {text}")


def test_a_map_alone_is_a_tuple_of_one(neck):
    x = torch.randn(1, 16, 4, 3, dtype=torch.double)
    for alone, of_tuple in zip(neck(x), neck((x,))):
        assert torch.equal(alone, of_tuple) and alone.is_contiguous()


@pytest.mark.parametrize(
    ("scales", "num_outs", "expected"),
    [
        ((4, 2, 1, 0.5), 5, [(20, 28), (10, 14), (5, 7), (2, 3), (1, 2)]),
        ((2, 1, 0.5, 0.25), 4, [(10, 14), (5, 7), (2, 3), (1, 1)]),
        ((1,), 3, [(5, 7), (3, 4), (2, 2)]),
        ((4.0, 1.0), 2, [(20, 28), (5, 7)]),
    ],
)
def test_sizes_of_an_odd_map(scales, num_outs, expected):
    neck = SimpleFeaturePyramid(8, 6, scales, num_outs)
    outs = neck(torch.randn(2, 8, 5, 7, requires_grad=True))
    assert [tuple(out.shape) for out in outs] == [(2, 6, *size) for size in expected]
    sum(out.sum() for out in outs).backward()
    assert all(p.grad is not None for p in neck.parameters())


def test_by_its_registered_name():
    neck = MODELS.build(dict(type="mmvssm.SimpleFeaturePyramid", in_channels=8))
    assert isinstance(neck, SimpleFeaturePyramid)
    assert {out.shape[1] for out in neck(torch.randn(1, 8, 2, 2))} == {256}


def test_its_norm_in_heads_of_the_libraries():
    layer = ConvModule(4, 6, 3, norm_cfg=dict(type="mmvssm.MapNorm", eps=1e-6), act_cfg=None)
    x = torch.randn(2, 4, 5, 7)
    y = layer.conv(x).double()
    variance, mean = torch.var_mean(y, dim=1, correction=0, keepdim=True)
    expected = (y - mean) / (variance + 1e-6).sqrt()
    torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=1e-5)
    assert not layer.with_bias  # the norm has one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(scales=(4, 3)), r"scales must be one of 4, 2, 1, 0\.5, 0\.25, got 3"),
        (dict(scales=(1, 2)), r"scales must be in descending order, got \(1, 2\)"),
        (dict(scales=(2, 2)), r"scales must be in descending order, got \(2, 2\)"),
        (dict(scales=()), r"scales must be in descending order, got \(\)"),
        (dict(num_outs=3), "num_outs must be at least 4, the number of scales, got 3"),
        (dict(in_channels=6), "in_channels must be a number divisible by 4 .*, got 6"),
        (dict(in_channels=[8]), r"in_channels must be a number divisible by 4 .*, got \[8\]"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        SimpleFeaturePyramid(**{"in_channels": 8, **options})


def test_wrong_inputs():
    neck, x = SimpleFeaturePyramid(8, 6), torch.randn(1, 8, 4, 4)
    with pytest.raises(ValueError, match=r"inputs must be \(B, 8, H, W\), got \(1, 4, 4, 4\)"):
        neck((x[:, :4],))
    with pytest.raises(ValueError, match=r"inputs must be \(B, 8, H, W\), got \(8, 4, 4\)"):
        neck(x[0])
    with pytest.raises(ValueError, match=r"one map, got 4.*out_indices"):
        neck((x, x, x, x))
    with pytest.raises(ValueError, match="one map, got 0"):
        neck(())
    with pytest.raises(ValueError, match="at least 2x2 pixels for these scales, got 4x1"):
        neck(x[..., :1])


# The pyramid inside the reference's segmentor, with batch norm in eval mode.
SEGMENTATION = {
    "fpn1.0.weight": (8, 8, 2, 2),
    "fpn1.0.bias": (8,),
    "fpn1.1.weight": (8,),
    "fpn1.1.bias": (8,),
    "fpn1.1.running_mean": (8,),
    "fpn1.1.running_var": (8,),
    "fpn1.3.weight": (8, 8, 2, 2),
    "fpn1.3.bias": (8,),
    "fpn2.0.weight": (8, 8, 2, 2),
    "fpn2.0.bias": (8,),
}


def feature2pyramid(**options):
    """Build mmsegmentation's neck as a config does."""
    return MODELS.build(dict(type="mmseg.Feature2Pyramid", norm_cfg=dict(type="BN"), **options))


def test_feature2pyramid_is_the_segmentors_pyramid():
    weights = {key: torch.from_numpy(fill_value(key, s)) for key, s in SEGMENTATION.items()}
    neck = feature2pyramid(embed_dim=8)
    neck.load_state_dict(necks_of(weights))

    def deconv(x, key):
        return F.conv_transpose2d(x, weights[f"{key}.weight"], weights[f"{key}.bias"], stride=2)

    maps = torch.randn(4, 2, 8, 5, 7).unbind()
    x4 = deconv(maps[0], "fpn1.0") - weights["fpn1.1.running_mean"][:, None, None]
    x4 = x4 / (weights["fpn1.1.running_var"] + 1e-5).sqrt()[:, None, None]
    x4 = x4 * weights["fpn1.1.weight"][:, None, None] + weights["fpn1.1.bias"][:, None, None]
    x4 = deconv(0.5 * x4 * (1 + torch.erf(x4 / 2**0.5)), "fpn1.3")
    expected = [x4, deconv(maps[1], "fpn2.0"), maps[2], F.max_pool2d(maps[3], 2)]
    for got, wanted in zip(neck.eval()(maps), expected):
        torch.testing.assert_close(got, wanted)


def test_feature2pyramid_for_patches_of_8():
    neck = feature2pyramid(embed_dim=8, rescales=[2, 1, 0.5, 0.25])
    sizes = [tuple(out.shape[2:]) for out in neck(torch.randn(4, 2, 8, 9, 13).unbind())]
    assert sizes == [(18, 26), (9, 13), (4, 6), (2, 3)]
