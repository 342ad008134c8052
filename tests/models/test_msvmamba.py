"""MSVMamba: mixer and block against plain float64 code, variants, and keys of releases."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from abilities import HALF_PRECISIONS
from mmvssm import ops
from mmvssm.models import MS2D, MSVMamba
from mmvssm.registry import MODELS

V3_MIXER = dict(
    ssm_ratio=1.0,
    gate=False,
    norm_position="after_sum",
    upsample="nearest",
    full_first=True,
    force_fp32=False,
)
V3 = dict(stem="conv", downsample="conv3", mlp_ratio=4, mlp_norm="post", mixer=V3_MIXER)
MICRO = dict(embed_dims=16, depths=(1, 1, 2, 1))
GATED_MINI = dict(
    V3, embed_dims=48, depths=(1, 1, 2, 1), mixer=dict(V3_MIXER, gate=True), mlp_ratio=4.0
)


@pytest.mark.parametrize("name", ["nano", "micro", "tiny", "v3-tiny", "v3-small", "v3-base"])
def test_what_the_generations_differ_in(name):
    """The generations differ in options that no parameter shows."""
    with torch.device("meta"):
        model = MSVMamba(name)
    v3 = name.startswith("v3")
    for stage in model.stages:
        for block in stage.blocks:
            assert block.mlp_norm == ("post" if v3 else "pre")
            mixer = block.mixer
            assert mixer.norm_position == ("after_sum" if v3 else "before_sum")
            assert mixer.upsample == ("nearest" if v3 else "bilinear")
            assert mixer.full_first == v3
            assert mixer.force_fp32 == (not v3)
            assert (mixer.gate_act is not None) == (name not in ("v3-tiny", "v3-small"))


def test_default_arguments():
    with torch.device("meta"):
        model = MSVMamba()
    assert model.embed_dims == [96, 192, 384, 768] and len(model.stages[2].blocks) == 9
    assert model.out_indices == (0, 1, 2, 3)


def scan(mixer, index, s):
    """Scan sequences s (B, L, D) with parameter set ``index``, step by step."""
    rank, states, channels = mixer.dt_rank, mixer.d_state, s.shape[-1]
    p = s @ mixer.x_proj_weight[index].T
    dt, B, C = p.split([rank, states, states], dim=-1)
    delta = F.softplus(dt @ mixer.dt_projs_weight[index].T + mixer.dt_projs_bias[index])
    of_set = slice(index * channels, (index + 1) * channels)
    A, D = -mixer.A_logs[of_set].exp(), mixer.Ds[of_set]
    h, ys = 0, []
    for n in range(s.shape[1]):
        d, s_n = delta[:, n, :, None], s[:, n, :, None]
        h = torch.exp(d * A) * h + d * s_n * B[:, n, None]
        ys.append((h * C[:, n, None]).sum(-1) + D * s[:, n])
    return torch.stack(ys, 1)


def resize_matrix(size, small, mode):
    """Return the weights (size, small) of the small side's pixels."""
    weights = torch.zeros(size, small, dtype=torch.float64)
    for i in range(size):
        if mode == "nearest":
            weights[i, i // 2] = 1
        else:
            source = max(0.0, (i + 0.5) * small / size - 0.5)
            low = int(source)
            weights[i, low] += 1 - (source - low)
            weights[i, min(low + 1, small - 1)] += source - low
    return weights


def plain_ms2d(mixer, x, act, gate, norm_position, upsample, full_first):
    """Apply the mixer to x (B, H, W, C)."""
    height, width = x.shape[1:3]
    h, w = (height + 1) // 2, (width + 1) // 2
    u = x @ mixer.in_proj.weight.T
    channels = mixer.out_norm.weight.numel()
    u, z = u[..., :channels], u[..., channels:]

    def norm(y):
        return F.layer_norm(y, (channels,), mixer.out_norm.weight, mixer.out_norm.bias)

    def tokens(conv, stride):
        pad, u_first = conv.weight.shape[-1] // 2, u.movedim(-1, 1)
        y = F.conv2d(u_first, conv.weight, conv.bias, stride, pad, groups=channels)
        return act(y).flatten(2).transpose(1, 2)

    full = scan(mixer, 0 if full_first else 1, tokens(mixer.conv2d, 1))
    small = tokens(mixer.small_conv2d, 2)
    length = h * w
    orders = [
        *reversed(range(length)),
        *(n % h * w + n // h for n in range(length)),
        *(n % h * w + n // h for n in reversed(range(length))),
    ]
    visits = scan(mixer, 1 if full_first else 0, small[:, orders])
    if norm_position == "before_sum":
        full, visits = norm(full), norm(visits)
    summed = [
        sum(visits[:, n] for n, pixel in enumerate(orders) if pixel == p) for p in range(length)
    ]
    summed = torch.stack(summed, 1).unflatten(1, (h, w))
    rows, columns = (resize_matrix(*sides, upsample) for sides in ((height, h), (width, w)))
    y = full.unflatten(1, (height, width)) + torch.einsum("ih,jw,bhwd->bijd", rows, columns, summed)
    if norm_position == "after_sum":
        y = norm(y)
    squeezed = (y.mean((1, 2)) @ mixer.se.fc1.weight.T).relu() @ mixer.se.fc2.weight.T
    y = y * squeezed.sigmoid()[:, None, None]
    if gate:
        y = y * act(z)
    return y @ mixer.out_proj.weight.T


V1_READING = dict(
    act=F.silu, gate=True, norm_position="before_sum", upsample="bilinear", full_first=False
)
V3_READING = dict(
    act=F.silu, gate=False, norm_position="after_sum", upsample="nearest", full_first=True
)
MIXERS = {
    "v1": (dict(), V1_READING),
    "v1 without gate": (dict(gate=False), dict(V1_READING, gate=False)),
    "v3": (V3_MIXER, V3_READING),
    "v3 with gate": (dict(V3_MIXER, gate=True), dict(V3_READING, gate=True)),
    "other sizes": (
        dict(d_state=3, dt_rank=2, d_conv=5, small_conv=3, act="gelu", upsample="nearest"),
        dict(V1_READING, act=F.gelu, upsample="nearest"),
    ),
    "other sums": (
        dict(norm_position="after_sum", full_first=True, d_conv=1),
        dict(V1_READING, norm_position="after_sum", full_first=True),
    ),
}
SIZES = [(4, 6), (5, 7), (1, 1), (1, 4), (3, 2)]


def check_against(module, reading, x):
    """Compare the output of ``module`` at x and all gradients with those of ``reading``."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    inputs = (x, *module.parameters())
    expected = reading(module, x)
    cotangent = torch.randn_like(expected)
    expected_grads = torch.autograd.grad((expected * cotangent).sum(), inputs)
    got = module(x)
    grads = torch.autograd.grad((got * cotangent).sum(), inputs)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    for grad, expected_grad in zip(grads, expected_grads):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MIXERS)
def test_values_and_gradients_of_the_mixer(name, size):
    options, how = MIXERS[name]
    x = torch.randn(2, *size, 16, dtype=torch.float64, requires_grad=True)
    check_against(MS2D(16, **options).double(), lambda m, x: plain_ms2d(m, x, **how), x)


@pytest.mark.parametrize("fields", [dict(), V3], ids=["v1", "v3"])
def test_values_and_gradients_of_the_block(fields):
    block = MSVMamba({**MICRO, **fields}, drop_path_rate=0).stages[0].blocks[0].double()

    def norm(layer, x):
        return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias)

    def feed_forward(mlp, x):
        x = F.conv2d(x.movedim(-1, 1), mlp.fc1.weight, mlp.fc1.bias)
        conv = mlp.dwconv
        x = x + F.conv2d(x, conv.weight, conv.bias, padding=1, groups=x.shape[1])
        return F.conv2d(F.gelu(x), mlp.fc2.weight, mlp.fc2.bias).movedim(1, -1)

    def reading(block, x):
        x = x + block.mixer(norm(block.norm1, x))
        if fields:
            return x + norm(block.norm2, feed_forward(block.mlp, x))
        return x + feed_forward(block.mlp, norm(block.norm2, x))

    x = torch.randn(2, 5, 3, 16, dtype=torch.float64, requires_grad=True)
    check_against(block, reading, x)


@pytest.mark.parametrize("fields", [dict(), V3], ids=["v1", "v3"])
@pytest.mark.parametrize("dtype", HALF_PRECISIONS)
def test_scan_precision_under_autocast(monkeypatch, dtype, fields):
    seen = []

    def spy(x, x_dbl, *args, **kwargs):
        seen.append((x.dtype, x_dbl.dtype, args[1].dtype, kwargs["out_dtype"]))
        return ops.selective_scan_2d(x, x_dbl, *args, **kwargs)

    monkeypatch.setattr("mmvssm.models.layers.scans.selective_scan_2d", spy)
    mixer = MS2D(16, **fields.get("mixer", {}))
    with torch.autocast("cpu", dtype):
        out = mixer(torch.randn(1, 5, 4, 16))
    wanted = dtype if fields else torch.float32
    assert seen == [(wanted, wanted, torch.float32, torch.float32)] * 2
    assert out.dtype == dtype and out.isfinite().all()


@pytest.mark.parametrize("options", [dict(), V3_MIXER], ids=["v1", "v3"])
def test_half_precision_model_keeps_its_dtype(options):
    x = torch.randn(1, 4, 4, 16, dtype=torch.bfloat16)
    out = MS2D(16, **options).bfloat16()(x)
    assert out.dtype == torch.bfloat16 and out.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(norm_position="map"),
            "norm_position must be one of 'before_sum', 'after_sum', got 'map'",
        ),
        (dict(upsample="bicubic"), "upsample must be one of 'bilinear', 'nearest'.*'bicubic'"),
        (dict(act="tanh"), "act must be one of 'silu', 'gelu', 'relu'.*'tanh'"),
        (dict(d_conv=4), "d_conv must be odd, got 4"),
        (dict(small_conv=6), "small_conv must be odd, got 6"),
        (dict(d_state=0), "d_state must be a whole number of at least 1, got 0"),
        (dict(ssm_ratio=0.4), r"int\(ssm_ratio \* embed_dims\) must be at least 8, got 6"),
    ],
)
def test_bad_arguments_of_the_mixer(options, message):
    with pytest.raises(ValueError, match=message):
        MS2D(16, **options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(mixer=None), "mixer must be a dict, got None"),
        (dict(mixer=dict(gates=1)), "mixer has unknown field.*'gates'; known fields are d_state"),
        (dict(mlp_norm="both"), "mlp_norm must be one of 'pre', 'post', got 'both'"),
        (dict(stem="linear"), "stem must be one of 'patch', 'conv'"),
        (dict(downsample="pool"), "downsample must be one of 'patch_merge', 'conv2', 'conv3'"),
    ],
)
def test_bad_arguments(fields, message):
    with pytest.raises(ValueError, match=message):
        MSVMamba({**MICRO, **fields})


def test_blocks_without_feed_forward():
    model = MSVMamba(dict(MICRO, mlp_ratio=0)).eval()
    block, x = model.stages[0].blocks[0], torch.randn(1, 3, 4, 16)
    torch.testing.assert_close(block(x), x + block.mixer(block.norm1(x)))


def test_registered():
    assert isinstance(MODELS.build(dict(type="mmvssm.MS2D", embed_dims=16)), MS2D)
