"""EfficientVMamba: blocks against a plain float64 implementation, and arguments of variants."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmvssm.models import EfficientVMamba
from mmvssm.models.backbones.efficient_vmamba import DualBranchMixer, InvertedResidual
from mmvssm.models.layers import MixerBlock

MICRO = dict(embed_dims=16, depths=(1, 1, 2, 1), mixer=dict(d_state=2))


def test_default_arguments():
    with torch.device("meta"):
        model = EfficientVMamba()
    assert model.embed_dims == [48, 96, 192, 384] and model.out_indices == (0, 1, 2, 3)


def batch_norm(layer, x):
    """Normalise x (B, C, H, W) by its own statistics in training, otherwise by the running ones."""
    mean, var = layer.running_mean, layer.running_var
    if layer.training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    return x * layer.weight[:, None, None] + layer.bias[:, None, None]


def depthwise(layer, x):
    return F.conv2d(x, layer.weight, layer.bias, padding=1, groups=x.shape[1])


def plain_gate(gate, u):
    """u (B, H, W, C)."""
    norm = F.layer_norm(u, u.shape[-1:], gate.norm.weight, gate.norm.bias)
    mean = norm.mean(1).mean(1)
    hidden = F.gelu(mean @ gate.global_reduce.weight.T + gate.global_reduce.bias)
    g = torch.sigmoid(hidden @ gate.channel_select.weight.T + gate.channel_select.bias)
    return u * g[:, None, None]


def plain_mixer_block(block, x):
    """x (B, H, W, C)."""
    n = F.layer_norm(x, x.shape[-1:], block.norm1.weight, block.norm1.bias)
    branch = block.mixer.conv_branch
    c = F.gelu(batch_norm(branch.norm, depthwise(branch.dwconv, n.movedim(-1, 1))))
    c = F.conv2d(c, branch.pwconv.weight, branch.pwconv.bias).movedim(1, -1)
    gate = block.mixer.gate
    x = x + plain_gate(gate, block.mixer.ss2d(n)) + plain_gate(gate, c)
    n = F.layer_norm(x, x.shape[-1:], block.norm2.weight, block.norm2.bias)
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(n)))


def plain_inverted_residual(block, x):
    """x (B, H, W, C)."""
    x = x.movedim(-1, 1)
    h = batch_norm(block.norm1, F.conv2d(x, block.expand.weight)).relu()
    h = batch_norm(block.norm2, depthwise(block.dwconv, h)).relu()
    s = F.conv2d(h.mean((2, 3), keepdim=True), block.se.fc1.weight, block.se.fc1.bias).relu()
    s = F.conv2d(s, block.se.fc2.weight, block.se.fc2.bias).sigmoid()
    y = x + batch_norm(block.norm3, F.conv2d(h * s, block.project.weight))
    return y.movedim(1, -1)


PLAIN = {MixerBlock: plain_mixer_block, InvertedResidual: plain_inverted_residual}


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients_of_the_blocks(stage, training):
    model = EfficientVMamba(dict(MICRO, embed_dims=8, mlp_ratio=2), drop_path_rate=0)
    block = model.stages[stage].blocks[0].double()
    for name, tensor in (*block.named_parameters(), *block.named_buffers()):
        if name.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 2)
        elif tensor.is_floating_point():
            nn.init.normal_(tensor, std=0.5)
    block.train(training)
    x = torch.randn(2, 3, 5, model.embed_dims[stage], dtype=torch.float64, requires_grad=True)
    inputs = (x, *block.parameters())
    expected = PLAIN[type(block)](block, x)
    cotangent = torch.randn_like(expected)
    expected_grads = torch.autograd.grad((expected * cotangent).sum(), inputs)
    got = block(x)
    grads = torch.autograd.grad((got * cotangent).sum(), inputs)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    for grad, expected_grad in zip(grads, expected_grads):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-8, atol=1e-8)


def test_batch_norms_learn_statistics_of_channels():
    block = InvertedResidual(8).train()
    x = torch.randn(4, 3, 5, 8)
    block(x)
    wide = F.conv2d(x.movedim(-1, 1), block.expand.weight)
    torch.testing.assert_close(block.norm1.running_mean, 0.1 * wide.mean((0, 2, 3)))
    torch.testing.assert_close(block.norm1.running_var, 0.9 + 0.1 * wide.var((0, 2, 3)))


def kinds(model):
    return [
        {MixerBlock: "es2d", InvertedResidual: "inverted_residual"}[type(stage.blocks[0])]
        for stage in model.stages
    ]


@pytest.mark.parametrize(
    ("depths", "given", "expected"),
    [
        ((1, 1, 1, 1), None, ["es2d"] * 2 + ["inverted_residual"] * 2),
        ((1, 1, 1), None, ["es2d"] * 2 + ["inverted_residual"]),
        ((1, 1), ("inverted_residual", "es2d"), ["inverted_residual", "es2d"]),
    ],
)
def test_types_of_the_stages(depths, given, expected):
    last = len(depths) - 1
    model = EfficientVMamba(dict(MICRO, depths=depths, stage_types=given), out_indices=(last,))
    assert kinds(model) == expected
    assert model(torch.randn(2, 3, 32, 32))[0].shape == (2, 16 * 2**last, 8 >> last, 8 >> last)


def test_single_arguments_of_the_mixer():
    ss2d = EfficientVMamba(dict(MICRO, mixer=dict(d_state=3))).stages[0].blocks[0].mixer.ss2d
    assert (ss2d.d_state, ss2d.scan.name, ss2d.force_fp32) == (3, "atrous", True)
    assert ss2d.in_proj.out_features == 4 * 16 and ss2d.conv2d.bias is not None
    rows = EfficientVMamba(dict(MICRO, mixer=dict(scan="unidi"))).stages[1].blocks[0].mixer.ss2d
    assert rows.scan.name == "unidi"


def test_ratios_of_inverted_residuals():
    block = EfficientVMamba(dict(MICRO, expand_ratio=3, se_ratio=0.25)).stages[2].blocks[0]
    assert block.expand.out_channels == 3 * 64 and block.se.fc1.out_channels == 48


@pytest.mark.parametrize(
    ("downsample", "smallest"), [("patch_merge", 4), ("conv2", 32), ("conv3", 4)]
)
def test_smallest_images(downsample, smallest):
    model = EfficientVMamba(dict(MICRO, downsample=downsample)).eval()
    assert model(torch.randn(1, 3, smallest, smallest))[-1].shape[2:] == (1, 1)
    with pytest.raises(ValueError, match=f"at least {smallest}x{smallest} pixels.*got 64x"):
        model(torch.randn(1, 3, 64, smallest - 1))


def test_merging_of_maps_with_odd_sides():
    """91x65 pixels give a 22x16 map, then halves rounded up, or down as an option."""
    image = torch.randn(1, 3, 91, 65)
    for odd_size, sizes in (
        ("pad", [(22, 16), (11, 8), (6, 4), (3, 2)]),
        ("crop", [(22, 16), (11, 8), (5, 4), (2, 2)]),
    ):
        maps = EfficientVMamba(MICRO, odd_size=odd_size).eval()(image)
        assert [tuple(m.shape[2:]) for m in maps] == sizes


@pytest.mark.parametrize("norm_eval", [True, False])
def test_norm_eval_and_frozen_stages_hold_batch_norms(norm_eval):
    model = EfficientVMamba(MICRO, norm_eval=norm_eval, frozen_stages=2).train()
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert len(norms) == 2 + 3 * 3
    model(torch.randn(2, 3, 64, 64))
    for name, norm in norms.items():
        held = norm_eval or not name.startswith("stages.3.")
        assert (norm.num_batches_tracked == 0) == held, name


def test_gate_is_one_module_for_both_branches():
    mixer = DualBranchMixer(16, {})
    calls = []
    mixer.gate.register_forward_hook(lambda *_: calls.append(1))
    mixer(torch.randn(1, 4, 4, 16))
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(stage_types=("es2d",)), r"stage_types must name 4 stages.*\('es2d',\)"),
        (
            dict(stage_types=("es2d", "es2d", "conv", "es2d")),
            "stage_types must be one of 'es2d', 'inverted_residual', got 'conv'",
        ),
        (dict(mixer=dict(gates=1)), "mixer has unknown field.*'gates'; known fields are d_state"),
        (dict(mixer=dict(scan="diagonal")), "scan must be one of 'cross2d'.*'diagonal'"),
        (dict(se_ratio=0.001), "expand_ratio and se_ratio must leave.*64 channels.*0.001"),
        (dict(embed_dims=4), "channels must be at least 8.*got 4"),
        (dict(downsample="pool"), "downsample must be one of 'patch_merge', 'conv2', 'conv3'"),
        (dict(stem="linear"), "stem must be one of 'patch', 'conv'"),
    ],
)
def test_bad_arguments(fields, message):
    with pytest.raises(ValueError, match=message):
        EfficientVMamba({**MICRO, **fields})
