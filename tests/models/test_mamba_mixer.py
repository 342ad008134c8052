"""MambaMixer against a plain float64 implementation of the papers, direction by direction."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from abilities import HALF_PRECISIONS
from mmvssm.models import MambaMixer
from mmvssm.ops.routes import directions
from mmvssm.registry import MODELS


def visited(name, height, width):
    """Return the tokens in the order of a direction, None for a zero token."""
    kind, _, flip = name.partition("_")
    if kind == "h":
        steps = [h * width + w for h in range(height) for w in range(width)]
    elif kind == "v":
        steps = [h * width + w for w in range(width) for h in range(height)]
    else:
        side = int(kind[1:])
        steps = []
        for top in range(0, height, side):
            for left in range(0, width, side):
                for h in range(top, top + side):
                    for w in range(left, left + side):
                        inside = h < height and w < width
                        steps.append(h * width + w if inside else None)
    return steps[::-1] if flip else steps


def output_order(name, steps, size, upstream):
    """Return the position to which the output of each step goes."""
    if not (upstream and name.startswith("v")):
        return steps
    height, width = size
    targets = [
        b * height + a for s in range(len(steps)) for a, b in [divmod(s, width)]
    ]  # as if a column order were a row order
    return targets[::-1] if name.endswith("flip") else targets


def scan_one(mixer, k, xz):
    """Scan direction k of xz (B, L, 2 * Di) in its own order; return gated outputs (B, L, Di)."""
    inner, states, rank = xz.shape[2] // 2, mixer.d_state, mixer.dt_rank
    channels = slice(k * inner, (k + 1) * inner)
    weight, bias = mixer.conv1d.weight[channels, 0], mixer.conv1d.bias[channels]
    x, z = xz.split(inner, dim=-1)
    taps = weight.shape[1]
    conv = []
    for t in range(x.shape[1]):
        seen = [(t - taps + 1 + i, i) for i in range(taps)]
        conv.append(bias + sum(x[:, s] * weight[:, i] for s, i in seen if s >= 0))
    x = F.silu(torch.stack(conv, 1))
    dt, B, C = (x @ mixer.x_proj_weight[k].T).split([rank, states, states], dim=-1)
    step = F.softplus(dt @ mixer.dt_projs_weight[k].T + mixer.dt_projs_bias[k])
    A, D = -mixer.A_logs[channels].exp(), mixer.Ds[channels]
    state = x.new_zeros(len(x), inner, states)
    ys = []
    for t in range(x.shape[1]):
        d = step[:, t, :, None]
        state = torch.exp(d * A) * state + d * B[:, t, None] * x[:, t, :, None]
        ys.append((state * C[:, t, None]).sum(-1) + D * x[:, t])
    return torch.stack(ys, 1) * F.silu(z)


def plain_mixer(mixer, x, merge="sum", size=None, position=None):
    xz = x @ mixer.in_proj.weight.T
    outs = []
    if not mixer.scan.directions:
        outs.append(scan_one(mixer, 0, xz))
        if mixer.num_routes == 2:
            outs.append(scan_one(mixer, 1, xz.flip(1)).flip(1))
    else:
        # the class token is taken from the map, and put back at its index in every order
        patches, token = xz, xz[:, :0]
        if position is not None:
            patches = torch.cat([xz[:, :position], xz[:, position + 1 :]], 1)
            token = xz[:, position : position + 1]
        for k, name in enumerate(mixer.scan.directions):
            steps = visited(name, *size)
            order = [len(patches[0]) if p is None else p for p in steps]
            scanned = F.pad(patches, (0, 0, 0, 1))[:, order]
            if position is not None:
                scanned = torch.cat([scanned[:, :position], token, scanned[:, position:]], 1)
            y = scan_one(mixer, k, scanned)
            token_out = y[:, :0]
            if position is not None:
                token_out = y[:, position : position + 1]
                y = torch.cat([y[:, :position], y[:, position + 1 :]], 1)
            targets = output_order(name, steps, size, mixer.scan.build.output_order == "upstream")
            out = [None] * len(patches[0])
            for s, target in enumerate(targets):
                if target is not None:
                    out[target] = y[:, s]
            out = torch.stack(out, 1)
            if position is not None:
                out = torch.cat([out[:, :position], token_out, out[:, position:]], 1)
            outs.append(out)
    if merge in ("gated", "search"):
        attn = mixer.merge.attn
        norm = (outs[0].shape[-1:], attn.norm.weight, attn.norm.bias)
        for k, y in enumerate(outs):
            mean = F.layer_norm(y, *norm).mean(1, keepdim=True)
            hidden = F.gelu(F.linear(mean, attn.global_reduce.weight, attn.global_reduce.bias))
            gate = F.linear(hidden, attn.channel_select.weight, attn.channel_select.bias)
            outs[k] = y * gate.sigmoid()
    if merge == "search":
        share = mixer.merge.weights.flatten().softmax(0)
        outs = [s * F.layer_norm(y, y.shape[-1:]) for s, y in zip(share, outs)]
    y = sum(outs)
    if merge == "mean":
        y = y / len(outs)
    return y @ mixer.out_proj.weight.T


FOUR = ("h_flip", "v", "w2", "w3_flip")
OPTIONS = {
    "vim": dict(),
    "vim, divided": dict(merge="mean"),
    "unidirectional": dict(scan="rows"),
    "step rank, short convolution": dict(dt_rank=3, d_conv=2, ssm_ratio=1.5),
    "no convolution": dict(d_conv=1),
    "local": dict(scan=FOUR, merge="gated"),
    "local, upstream": dict(scan=("v", "v_flip", "w2"), merge="gated", output_order="upstream"),
    "sums": dict(scan=FOUR),
    "sums, upstream": dict(scan=("v_flip", "w2_flip", "v"), output_order="upstream"),
    "mean of directions": dict(scan=("v", "h"), merge="mean"),
    "search": dict(scan=("h", "v_flip", "w7"), merge="search"),
}


@pytest.mark.parametrize(("size", "class_token"), [((2, 3), False), ((3, 2), True), ((3, 3), True)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_values_and_gradients(options, size, class_token):
    mixer = MambaMixer(8, d_state=2, **options).double()
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    tokens = size[0] * size[1]
    position = tokens // 2 if class_token else None
    x = torch.randn(2, tokens + class_token, 8, dtype=torch.float64, requires_grad=True)
    inputs = (x, *mixer.parameters())
    expected = plain_mixer(mixer, x, options.get("merge", "sum"), size, position)
    cotangent = torch.randn_like(expected)
    expected_grads = torch.autograd.grad((expected * cotangent).sum(), inputs)
    got = mixer(x, size, () if position is None else (position,))
    grads = torch.autograd.grad((got * cotangent).sum(), inputs)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    for grad, expected_grad in zip(grads, expected_grads):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-8, atol=1e-8)


def test_directions_of_the_reading_are_those_of_the_routes():
    names = ("h", "v_flip", "w2", "w7_flip")
    table = directions(3, 5, names=names)
    for name, route in zip(names, table.tolist()):
        steps = [-1 if p is None else p for p in visited(name, 3, 5)]
        assert route == steps + [-1] * (len(route) - len(steps))


def test_ways_back_agree_on_square_maps_only():
    inverse = MambaMixer(8, scan=("v", "h"), merge="gated").double()
    upstream = MambaMixer(8, scan=("v", "h"), merge="gated", output_order="upstream").double()
    upstream.load_state_dict(inverse.state_dict())
    x = torch.randn(1, 36, 8, dtype=torch.float64)
    torch.testing.assert_close(upstream(x, (6, 6)), inverse(x, (6, 6)))
    difference = (upstream(x, (4, 9)) - inverse(x, (4, 9))).norm() / inverse(x, (4, 9)).norm()
    assert difference > 0.1


@pytest.mark.parametrize("dtype", HALF_PRECISIONS)
@pytest.mark.parametrize("options", [dict(), dict(scan=FOUR, merge="search")])
def test_half_precision(options, dtype):
    mixer = MambaMixer(16, **options)
    x = torch.randn(2, 12, 16)
    expected = mixer(x, (3, 4))
    with torch.autocast("cpu", dtype):
        mixed = mixer(x, (3, 4))
    half = mixer.to(dtype)(x.to(dtype), (3, 4))
    for got in (mixed, half):
        assert got.dtype == dtype
        assert (got - expected).norm() < 0.05 * expected.norm()


def test_initial_values_of_vim():
    mixer = MambaMixer(64, depth=25)
    steps = F.softplus(mixer.dt_projs_bias)
    assert steps[0].min() >= 9e-4 and steps[0].max() <= 0.101
    assert (mixer.dt_projs_bias[1] == 0).all()
    bound = 128**-0.5 / 5
    assert 0.95 * bound < mixer.out_proj.weight.abs().max() <= bound
    assert mixer.x_proj_weight.abs().max() > 0.9 * 128**-0.5
    assert mixer.dt_projs_weight.abs().max() > 0.9 * 4**-0.5
    mixer.out_proj.weight.data.fill_(9)
    mixer.init_weights()
    assert 0.95 * bound < mixer.out_proj.weight.abs().max() <= bound


def test_initial_values_as_in_linear_layers():
    mixer = MambaMixer(64, ssm_init="linear")
    assert (mixer.dt_projs_bias == 0).all()
    for weight in (mixer.x_proj_weight, mixer.dt_projs_weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    torch.testing.assert_close(mixer.A_logs.exp(), torch.arange(1.0, 17).expand(256, 16))
    assert F.softplus(MambaMixer(64, ssm_init="v0").dt_projs_bias).max() <= 0.101


def test_inner_width_and_rank():
    mixer = MambaMixer(40)
    assert mixer.in_proj.weight.shape == (160, 40)
    assert mixer.dt_rank == math.ceil(40 / 16)
    assert mixer.conv1d.weight.shape == (160, 1, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(scan="spiral"), "scan must be one of 'cross2d', .*'bidirectional'.*got 'spiral'"),
        (dict(scan=("h", "w0")), "a direction must be 'h'.*got 'w0'"),
        (dict(scan=()), "scan must name at least one direction"),
        (dict(merge="product"), "merge must be one of 'sum', 'mean', 'gated', 'search'.*'product'"),
        (
            dict(scan=("h",), output_order="forth"),
            "output_order must be one of 'inverse', 'upstream'",
        ),
        (dict(output_order="upstream"), "output_order needs directions"),
        (dict(d_conv=0), "d_conv must be at least 1, got 0"),
        (dict(d_state=0), "d_state must be a whole number of at least 1, got 0"),
        (dict(ssm_ratio=0.1), r"int\(ssm_ratio \* embed_dims\) must be at least 1, got 0"),
        (dict(ssm_init="xavier"), "ssm_init must be one of 'v0'.*'linear', got 'xavier'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        MambaMixer(8, **options)


@pytest.mark.parametrize("size", [None, (3, 4)])
def test_size_must_fit_the_sequence(size):
    with pytest.raises(ValueError, match=r"size must be the map \(H, W\) of the 13 tokens"):
        MambaMixer(8, scan=("h",))(torch.randn(1, 13, 8), size)


def test_registered():
    assert isinstance(MODELS.build(dict(type="mmvssm.MambaMixer", embed_dims=8)), MambaMixer)
