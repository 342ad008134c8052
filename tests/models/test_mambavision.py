"""MambaVision: layers against a plain float64 implementation, windows, and arguments."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmvssm.models import HalfScanMixer, MambaVision
from mmvssm.models.backbones.mambavision import ConvBlock, WindowStage
from mmvssm.models.layers import Attention, from_windows, to_windows

MICRO = dict(embed_dims=16, depths=(1, 1, 3, 2), num_heads=(2, 4), stem_dims=8)


def fill(module):
    """Fill with random values as large as those of a trained network."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if name.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 2)
        elif tensor.is_floating_point():
            nn.init.normal_(tensor, std=0.4)
    return module


def plain_mixer(mixer, x):
    """Mix x (B, L, C), one step after the other."""
    h = x @ mixer.in_proj.weight.T
    before, after = F.pad(h, (0, 0, 1, 0))[:, :-1], F.pad(h, (0, 0, 0, 1))[:, 1:]
    w = mixer.conv1d.weight[:, 0]
    h = F.silu(before * w[:, 0] + h * w[:, 1] + after * w[:, 2])
    half, rank, states = x.shape[-1] // 2, mixer.dt_rank, mixer.d_state
    u, z = h[..., :half], h[..., half:]
    projected = u @ mixer.x_proj_weight[0].T
    step = projected[..., :rank] @ mixer.dt_projs_weight[0].T + mixer.dt_projs_bias[0]
    step = F.softplus(step + mixer.dt_projs_bias[0])
    B, C = projected[..., rank : rank + states], projected[..., rank + states :]
    state, outs = x.new_zeros(len(x), half, states), []
    for t in range(x.shape[1]):
        decay = torch.exp(-step[:, t, :, None] * mixer.A_logs.exp())
        state = decay * state + (step[:, t] * u[:, t])[..., None] * B[:, t, None]
        outs.append((state * C[:, t, None]).sum(-1) + mixer.Ds * u[:, t])
    return torch.cat([torch.stack(outs, 1), z], -1) @ mixer.out_proj.weight.T


def plain_attention(attention, x):
    """Attend over x (B, L, C), one head after the other."""
    channels, heads = x.shape[-1], attention.num_heads
    width, outs = channels // heads, []
    q, k, v = (x @ attention.qkv.weight.T + attention.qkv.bias).split(channels, -1)
    for i in range(heads):
        own = slice(i * width, (i + 1) * width)
        scores = q[..., own] @ k[..., own].transpose(1, 2) / width**0.5
        outs.append(scores.softmax(-1) @ v[..., own])
    return torch.cat(outs, -1) @ attention.proj.weight.T + attention.proj.bias


def assert_same(layer, plain, x):
    """Compare values, and gradients of the input and of all parameters."""
    x.requires_grad_()
    inputs = (x, *layer.parameters())
    expected, got = plain(layer, x), layer(x)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    cotangent = torch.randn_like(expected)
    grads, expected_grads = (
        torch.autograd.grad((out * cotangent).sum(), inputs) for out in (got, expected)
    )
    for grad, expected_grad in zip(grads, expected_grads):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("layer", "plain"),
    [(HalfScanMixer(20, d_state=3), plain_mixer), (Attention(20, 4), plain_attention)],
    ids=["mixer", "attention"],
)
def test_mixers_of_a_window(layer, plain):
    def of_map(layer, x):
        return plain(layer, x.flatten(1, 2)).view(x.shape)

    assert_same(fill(layer.double()), of_map, torch.randn(2, 3, 4, 20, dtype=torch.float64))


def plain_conv_block(block, x):
    """Apply the block to x (B, H, W, C)."""
    y = x.movedim(-1, 1)
    for conv, norm in ((block.conv1, block.norm1), (block.conv2, block.norm2)):
        y = F.conv2d(y, conv.weight, conv.bias, padding=1)
        y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)
        if conv is block.conv1:
            y = 0.5 * y * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)))
    return x + y.movedim(1, -1) * block.layer_scale.weight


def test_blocks_of_convolutions():
    block = fill(ConvBlock(6, layer_scale=1e-5).double()).eval()
    assert_same(block, plain_conv_block, torch.randn(2, 3, 5, 6, dtype=torch.float64))


def test_kinds_of_blocks():
    """The first half of a stage's blocks, rounded up, are scans."""
    for depths in ((1, 1, 3, 2), (1, 0, 1, 4)):
        model = MambaVision(dict(MICRO, depths=depths))
        assert [type(b) for b in model.stages[0].blocks] == [ConvBlock] * depths[0]
        for stage, depth in zip(model.stages[2:], depths[2:]):
            scans = [isinstance(block.mixer, HalfScanMixer) for block in stage.blocks]
            assert scans == [True] * (depth - depth // 2) + [False] * (depth // 2)


@pytest.mark.parametrize("size", [(6, 9), (5, 7), (2, 3), (1, 4)])
def test_windows(size):
    """Windows go row by row, zero-padded at the bottom and right, and merge back unchanged."""
    height, width = size
    x = torch.arange(1.0, 2 * height * width + 1).view(2, height, width, 1)
    windows = to_windows(x, 3)
    rows, columns = (height + 2) // 3, (width + 2) // 3
    assert windows.shape == (2 * rows * columns, 3, 3, 1)
    padded = F.pad(x, (0, 0, 0, 3 * columns - width, 0, 3 * rows - height))
    for n, window in enumerate(windows):
        image, place = divmod(n, rows * columns)
        i, j = (3 * number for number in divmod(place, columns))
        assert torch.equal(window, padded[image, i : i + 3, j : j + 3])
    assert torch.equal(from_windows(windows, size), x)


def changed(stage, x, row, column):
    """Return where the output of a stage changes with one pixel of its input."""
    other = x.clone()
    other[0, row, column] += 1
    with torch.no_grad():
        return (stage(other) - stage(x)).abs().amax(-1)[0] > 1e-7


def test_a_stage_sees_one_window_at_a_time():
    stage = fill(MambaVision(MICRO, window_sizes=(3, 2)).stages[2]).eval()
    assert isinstance(stage, WindowStage) and stage.window_size == 3
    x = torch.randn(1, 5, 7, 64)
    expected = torch.zeros(5, 7, dtype=torch.bool)
    expected[:3, 3:6] = True
    assert torch.equal(changed(stage, x, 0, 4), expected)
    expected = torch.zeros(5, 7, dtype=torch.bool)
    expected[3:, 6:] = True
    assert torch.equal(changed(stage, x, 4, 6), expected)


def test_windows_change_what_the_weights_compute():
    """The padding of a window takes part: a larger window is a different network."""
    small, large = (MambaVision(MICRO, window_sizes=(side, side)).eval() for side in (4, 5))
    fill(small)
    large.load_state_dict(small.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        first, *_, last = zip(small(image), large(image))
    torch.testing.assert_close(*first)
    assert (last[0] - last[1]).abs().max() > 1e-2


def test_drop_path_of_windows():
    """Each window of an image is dropped on its own."""
    stage = MambaVision(MICRO, window_sizes=(2, 2), drop_path_rate=0.9).stages[3].train()
    torch.manual_seed(0)
    x = torch.randn(1, 16, 16, 128)
    with torch.no_grad():
        same = (stage(x) == x).all(-1)[0].view(8, 2, 8, 2).transpose(1, 2).flatten(2)
    assert torch.equal(same.all(-1), same.any(-1))
    assert 3 < same.any(-1).sum() < 61


def test_step_bias_counts_twice():
    mixer = HalfScanMixer(8)
    nn.init.constant_(mixer.dt_projs_bias, 0.25)
    assert (mixer.scan_parameters()[2] == 0.5).all()


def test_norms_of_outputs():
    classifier = MambaVision(MICRO, out_indices=3, out_norm="bn")
    assert isinstance(classifier.norm3, nn.BatchNorm2d)
    norms = [getattr(MambaVision(MICRO), f"norm{i}") for i in range(4)]
    assert all(isinstance(norm, nn.LayerNorm) and norm.eps == 1e-5 for norm in norms)
    assert isinstance(MambaVision(MICRO, out_norm=False).norm0, nn.Identity)
    with pytest.raises(ValueError, match=r"norm must be one of 'ln', .*'bn'.*got 'batch'"):
        MambaVision(MICRO, out_norm="batch")


def test_names_that_differ_in_windows():
    with torch.device("meta"):
        models = {name: MambaVision(name) for name in ("large2", "large2-512", "large3-256")}
        models["large3-512"] = MambaVision("large3-256", window_sizes=(32, 16))
    sides = {name: [s.window_size for s in model.stages[2:]] for name, model in models.items()}
    assert sides == {
        "large2": [14, 7],
        "large2-512": [32, 16],
        "large3-256": [16, 8],
        "large3-512": [32, 16],
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(embed_dims=(16, 16, 15, 16)), "embed_dims must be even, .* got 15"),
        (dict(mixer=dict(d_conv=2)), "d_conv must be an odd number of at least 1, got 2"),
        (dict(mixer=dict(ssm_ratio=2)), "mixer has unknown field.*'ssm_ratio'; known .*d_state"),
        (dict(depths=(1, 1, 1)), "num_heads must have .* the 1 stages with windows"),
        (dict(downsample="conv3"), "arch has unknown field.*'downsample'"),
    ],
)
def test_bad_arguments(fields, message):
    with pytest.raises(ValueError, match=message):
        MambaVision({**MICRO, **fields})
