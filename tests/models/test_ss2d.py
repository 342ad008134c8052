"""SS2D against a plain float64 implementation of the paper: flips, one scan after the other."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from abilities import HALF_PRECISIONS
from mmvssm import ops
from mmvssm.models import SS2D, CascadeSS2D, FlippedCascadeSS2D, ScalarDecaySS2D
from mmvssm.registry import MODELS

ACTS = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}


def sequential_scan(u, delta, A, B, C, D):
    """Scan u and delta (B, D, L) with A (D, N), B and C (B, N, L) and D (D,)."""
    h = u.new_zeros(*u.shape[:2], A.shape[1])
    ys = []
    for t in range(u.shape[-1]):
        d, u_t = delta[..., t], u[..., t]
        h = torch.exp(d[..., None] * A) * h + (d * u_t)[..., None] * B[:, None, :, t]
        ys.append((h * C[:, None, :, t]).sum(-1) + D * u_t)
    return torch.stack(ys, -1)


def scan_route(mixer, k, u, routes=4):
    """Scan sequences u (B, D, L) with the parameters of route k."""
    rank, states = mixer.dt_rank, mixer.d_state
    q = torch.einsum("cd,bdl->bcl", mixer.x_proj_weight[k], u)
    dt, B, C = q.split([rank, states, states], dim=1)
    channels = u.shape[1]
    if isinstance(mixer, ScalarDecaySS2D):
        head_dim = channels // rank
        delta = F.softplus(dt + mixer.dt_projs_bias[k][:, None]).repeat_interleave(head_dim, 1)
        A = -mixer.A_logs[k].exp().repeat_interleave(head_dim)[:, None].expand(-1, states)
        D = mixer.Ds[k].reshape(-1)
    else:
        delta = torch.einsum("dr,brl->bdl", mixer.dt_projs_weight[k], dt)
        delta = F.softplus(delta + mixer.dt_projs_bias[k][:, None])
        A = -mixer.A_logs.view(routes, channels, states)[k].exp()
        D = mixer.Ds.view(routes, channels)[k]
    return sequential_scan(u, delta, A, B, C, D)


def scan_atrous(mixer, x):
    """Each of four sub-grids of the zero-padded map is one sequence, rows first or columns first.

    Args:
        mixer: An SS2D of atrous scans.
        x: (B, D, H, W).
    """
    height, width = x.shape[2:]
    x = F.pad(x, (0, width % 2, 0, height % 2))
    y = torch.zeros_like(x)
    for k, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        grid = x[:, :, row::2, column::2]
        if row:
            lines = scan_route(mixer, k, grid.transpose(2, 3).flatten(2))
            y[:, :, 1::2, column::2] = lines.unflatten(2, grid.mT.shape[2:]).transpose(2, 3)
        else:
            lines = scan_route(mixer, k, grid.flatten(2))
            y[:, :, 0::2, column::2] = lines.unflatten(2, grid.shape[2:])
    return y[:, :, :height, :width]


def scan_map(mixer, x):
    """Scan x (B, D, H, W) along all routes."""
    if mixer.scan.name == "atrous":
        return scan_atrous(mixer, x)
    rows = x.flatten(2)
    columns = x.transpose(2, 3).flatten(2)

    def from_columns(y):
        return y.view(*x.shape[:2], x.shape[3], x.shape[2]).transpose(2, 3)

    if mixer.scan.name == "cross2d" and not isinstance(mixer, CascadeSS2D):
        y = scan_route(mixer, 0, rows) + scan_route(mixer, 2, rows.flip(-1)).flip(-1)
        y = y.view(x.shape)
        y = y + from_columns(scan_route(mixer, 1, columns))
        return y + from_columns(scan_route(mixer, 3, columns.flip(-1)).flip(-1))
    if mixer.scan.name == "unidi":
        return sum(scan_route(mixer, k, rows) for k in range(4)).view(x.shape)
    if mixer.scan.name == "bidi":
        y = scan_route(mixer, 0, rows) + scan_route(mixer, 1, rows)
        y = y + (scan_route(mixer, 2, rows.flip(-1)) + scan_route(mixer, 3, rows.flip(-1))).flip(-1)
        return y.view(x.shape)
    for first in (0, 2):
        x = F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)
        lines = x.transpose(1, 2).flatten(0, 1)  # B*H, D, W
        backward = scan_route(mixer, first + 1, lines.flip(-1))
        y = scan_route(mixer, first, lines) + (backward.flip(-1) if mixer.flip else backward)
        # back to B, D, H, W, then the other axis becomes the lines
        x = y.unflatten(0, (x.shape[0], -1)).transpose(1, 2).transpose(2, 3)
    return x


def plain_ss2d(mixer, x, act, gate, gate_act, out_norm, out_act):
    act = ACTS[act]
    x = mixer.in_proj(x)
    if gate:
        x, z = x.chunk(2, -1)
        z = act(z) if gate_act else z
    x = x.movedim(-1, 1)
    if isinstance(mixer.conv2d, nn.Conv2d):
        x = F.conv2d(x, mixer.conv2d.weight, mixer.conv2d.bias, padding=1, groups=x.shape[1])
    y = scan_map(mixer, act(x))

    def norm(y, layer):
        return F.layer_norm(y.movedim(1, -1), y.shape[1:2], layer.weight, layer.bias).movedim(-1, 1)

    def conv(y, layer):
        return F.conv2d(y, layer.weight, padding=1, groups=y.shape[1])

    y = {
        "layernorm": lambda: norm(y, mixer.out_norm),
        "none": lambda: y,
        "dwconv3": lambda: conv(y, mixer.out_norm),
        "cnorm": lambda: conv(norm(y, mixer.out_norm[0]), mixer.out_norm[1]),
        "softmax": lambda: y.flatten(2).softmax(-1).view(y.shape),
        "sigmoid": lambda: y.sigmoid(),
    }[out_norm]()
    y = y.movedim(1, -1)
    if out_act:
        y = F.gelu(y)
    if gate:
        y = y * z
    return mixer.out_proj(y)


BASE = dict(act="silu", gate=False, gate_act=True, out_norm="layernorm", out_act=False)
OPTIONS = {
    "second release": dict(),
    "first release": dict(d_state=3, ssm_ratio=2.0, gate=True, conv_bias=True, force_fp32=True),
    "gate without activation": dict(gate=True, gate_act=False, act="gelu"),
    "gate after out_act": dict(gate=True, out_act=True),
    "no convolution": dict(d_conv=0, act="relu"),
    "step rank": dict(dt_rank=3),
    **{name: dict(out_norm=name) for name in ("none", "dwconv3", "cnorm", "softmax", "sigmoid")},
    **{name: dict(scan=name, d_state=2) for name in ("unidi", "bidi", "atrous")},
    "cascade": dict(type=CascadeSS2D, d_state=2),
    "cascade with flip": dict(type=FlippedCascadeSS2D),
    "scalar decay": dict(type=ScalarDecaySS2D, ssm_init="v1", dt_rank=3, d_state=4, gate=True),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_values_and_gradients(options):
    compare_with_plain_reading(options, (3, 5))


@pytest.mark.parametrize("size", [(4, 6), (4, 5), (5, 4), (7, 7), (1, 1), (1, 4), (5, 1)])
def test_values_and_gradients_of_atrous_scans(size):
    options = dict(scan="atrous", d_state=3, ssm_ratio=2.0, gate=True, conv_bias=True)
    compare_with_plain_reading(options, size)


def compare_with_plain_reading(options, size):
    arguments = {name: value for name, value in options.items() if name != "type"}
    mixer = options.get("type", SS2D)(12, **arguments).double()
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, *size, 12, dtype=torch.float64, requires_grad=True)
    how = {name: options.get(name, default) for name, default in BASE.items()}
    inputs = (x, *mixer.parameters())
    expected = plain_ss2d(mixer, x, **how)
    cotangent = torch.randn_like(expected)
    expected_grads = torch.autograd.grad((expected * cotangent).sum(), inputs)
    got = mixer(x)
    grads = torch.autograd.grad((got * cotangent).sum(), inputs)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    for grad, expected_grad in zip(grads, expected_grads):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (4, 1)])
def test_degenerate_maps(size):
    mixer = SS2D(8).double()
    x = torch.randn(1, *size, 8, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), plain_ss2d(mixer, x, **BASE), rtol=1e-9, atol=1e-9)


def test_atrous_scans_project_each_pixel_once(monkeypatch):
    seen = []

    def spy(x, x_dbl, *args, **kwargs):
        seen.append(tuple(x_dbl.shape))
        return ops.selective_scan_2d(x, x_dbl, *args, **kwargs)

    monkeypatch.setattr("mmvssm.models.layers.scans.selective_scan_2d", spy)
    mixer = SS2D(16, scan="atrous", d_state=3)
    mixer(torch.randn(2, 5, 4, 16))
    assert seen == [(2, 20, 1, 1 + 2 * 3)]


@pytest.mark.parametrize("force_fp32", [True, False])
@pytest.mark.parametrize("dtype", HALF_PRECISIONS)
def test_scan_precision_under_autocast(monkeypatch, dtype, force_fp32):
    seen = {}

    def spy(x, x_dbl, *args, **kwargs):
        seen.update(x=x.dtype, x_dbl=x_dbl.dtype, A=args[1].dtype, out=kwargs["out_dtype"])
        return ops.selective_scan_2d(x, x_dbl, *args, **kwargs)

    monkeypatch.setattr("mmvssm.models.layers.scans.selective_scan_2d", spy)
    mixer = SS2D(16, force_fp32=force_fp32)
    with torch.autocast("cpu", dtype):
        out = mixer(torch.randn(1, 4, 4, 16))
    wanted = torch.float32 if force_fp32 else dtype
    assert seen == dict(x=wanted, x_dbl=wanted, A=torch.float32, out=torch.float32)
    assert out.dtype == dtype
    assert out.isfinite().all()


def test_half_precision_model_keeps_its_dtype():
    out = SS2D(16, gate=True).bfloat16()(torch.randn(1, 4, 4, 16, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


def test_initial_values():
    mixer = SS2D(256, d_state=4, ssm_ratio=2.0)
    inner, rank = 512, 16
    assert mixer.x_proj_weight.shape == (4, rank + 8, inner)
    for weight, bound in (
        (mixer.x_proj_weight, inner**-0.5),
        (mixer.dt_projs_weight, rank**-0.5),
    ):
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    torch.testing.assert_close(mixer.A_logs, torch.arange(1.0, 5).log().expand(4 * inner, 4))
    assert (mixer.Ds == 1).all()
    steps = F.softplus(mixer.dt_projs_bias).log()
    assert math.log(1e-3) - 1e-3 <= steps.min() and steps.max() <= math.log(0.1) + 1e-3
    middle, width = math.log(1e-2), math.log(100)
    assert steps.mean().item() == pytest.approx(middle, abs=0.1)
    assert steps.std().item() == pytest.approx(width / math.sqrt(12), rel=0.05)


def test_initial_values_of_the_variants():
    normal = SS2D(256, d_state=4, ssm_init="v1")
    assert normal.A_logs.std().item() == pytest.approx(1, rel=0.1)
    assert normal.dt_projs_weight.std().item() == pytest.approx(0.1, rel=0.1)
    assert normal.dt_projs_bias.std().item() == pytest.approx(0.1, rel=0.1)
    uniform = SS2D(256, d_state=4, ssm_init="v2")
    assert (uniform.A_logs == 0).all()
    for value in (uniform.dt_projs_weight, uniform.dt_projs_bias):
        assert value.min() >= 0 and value.max() <= 0.1
        assert value.mean().item() == pytest.approx(0.05, rel=0.1)
    heads = ScalarDecaySS2D(64, ssm_init="v2")
    assert heads.Ds.shape == (4, 4, 16) and (heads.Ds == 1).all()
    assert heads.A_logs.shape == heads.dt_projs_bias.shape == (4, 4)


def test_marks_against_weight_decay():
    marked = {
        name for name, p in SS2D(16).named_parameters() if getattr(p, "_no_weight_decay", False)
    }
    assert marked == {"A_logs", "Ds"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(scan="spiral"),
            "scan must be one of 'cross2d', 'unidi', 'bidi', .*'atrous'.*'spiral'",
        ),
        (dict(out_norm="batch"), "out_norm must be one of 'layernorm'.*'batch'"),
        (dict(act="tanh"), "act must be one of 'silu', 'gelu', 'relu'.*'tanh'"),
        (dict(ssm_init="v9"), "ssm_init must be one of 'v0'.*'v1', 'v2'.*'v9'"),
        (dict(d_conv=4), "d_conv must be odd.*4"),
        (dict(d_state=0), "d_state must be a whole number of at least 1, got 0"),
        (dict(ssm_ratio=0.01), "ssm_ratio.*at least 1.*0"),
        (
            dict(type=ScalarDecaySS2D, ssm_init="v2", dt_rank=5),
            "dt_rank must divide the inner width 16 with scalar decay, got 5",
        ),
        (dict(type=CascadeSS2D, scan="bidi"), "do not pass scan, got 'bidi'"),
        (dict(type=ScalarDecaySS2D), "ssm_init must be 'v1' or 'v2'"),
    ],
)
def test_bad_arguments(options, message):
    options = dict(options)
    with pytest.raises(ValueError, match=message):
        options.pop("type", SS2D)(16, **options)


def test_routes_of_ones_own():
    """Three routes, one of which skips pixels and another visits some twice."""

    def three(height, width):
        pixels = torch.arange(height * width, dtype=torch.int32)
        twice = torch.cat([pixels[:2], pixels[:-2]])
        sparse = torch.where(pixels % 2 == 0, pixels, -1)
        return torch.stack([pixels.flip(0), twice, sparse])

    mixer = SS2D(8, scan=three, d_state=2, d_conv=0, out_norm="none").double()
    assert mixer.num_routes == 3 and mixer.x_proj_weight.shape[0] == 3
    x = torch.randn(1, 2, 3, 8, dtype=torch.float64)
    u = F.silu(mixer.in_proj(x)).flatten(1, 2)
    expected = torch.zeros_like(u)
    for k, route in enumerate(three(2, 3).tolist()):
        visited = torch.stack([u[:, p] if p >= 0 else torch.zeros_like(u[:, 0]) for p in route], 2)
        y = scan_route(mixer, k, visited, routes=3)
        for step, pixel in enumerate(route):
            if pixel >= 0:
                expected[:, pixel] += y[..., step]
    torch.testing.assert_close(mixer(x), mixer.out_proj(expected).view(x.shape))


def test_number_of_routes_must_not_depend_on_the_size():
    mixer = SS2D(8, scan=lambda height, width: torch.zeros(height, 1, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"'<lambda>' must have 4 routes .* got 5 over 5x3 pixels"):
        mixer(torch.randn(1, 5, 3, 8))


def test_registered():
    assert isinstance(MODELS.build(dict(type="mmvssm.SS2D", embed_dims=8)), SS2D)
