"""Thousands of wrong calls of ops, layers and configs raise Python errors and never crash.

``make sanitize`` runs these on ops whose every access to memory is checked.
"""

import random
from collections import Counter

import pytest
import torch

from mmvssm import ops
from mmvssm.models import layers
from mmvssm.registry import MODELS

#: What wrong arguments may raise. RuntimeError comes from torch, such as when out of memory.
REFUSALS = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError)
#: Arguments of any kind.
ODDITIES = (
    *(None, True, -1, 0, 1, 2, 3, 7, 2.5, float("nan"), float("inf"), 2**31, 2**62, -(2**63)),
    *("", "sum", "row", (), (1,), [], [3, -1], {}, dict(type="x"), b"", object(), int, 1j),
)
SHAPES = (
    *((), (0,), (1,), (5,), (2, 0), (3, 4), (0, 3, 4), (2, 3, 4), (1, 1, 1), (2, 1, 3, 4)),
    *((2, 2, 3, 0), (1, 2, 3, 4, 5), (65, 1), (2, 6, 7), (2, 12, 5)),
)
DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64),
    *(torch.uint8, torch.bool, torch.complex64),
)


def odd_tensor(rng, like=None):
    """Draw a tensor that is not what is expected, though often nearly."""
    if like is None or rng.random() < 0.3:
        tensor = torch.ones(rng.choice(SHAPES)).to(rng.choice(DTYPES))
    else:
        tensor = like.detach()
        change = rng.randrange(11)
        if change == 0:
            tensor = tensor.to(rng.choice(DTYPES))
        elif change == 1 and tensor.dim():
            axis = rng.randrange(tensor.dim())
            tensor = tensor.narrow(axis, 0, rng.randrange(tensor.shape[axis] + 1))
        elif change == 2 and tensor.dim():
            tensor = torch.cat([tensor, tensor], rng.randrange(tensor.dim()))
        elif change == 3:
            tensor = tensor[None] if rng.random() < 0.5 else tensor.squeeze()
        elif change == 4 and tensor.dim() > 1:
            tensor = tensor.transpose(rng.randrange(tensor.dim()), -1)
        elif change == 5:
            tensor = tensor.to("meta")
        elif change == 6 and tensor.is_floating_point():
            value = rng.choice([float("nan"), float("inf"), -float("inf"), 6e4, -6e4])
            tensor = torch.full_like(tensor, value)
        elif change == 7 and tensor.dim():
            tensor = tensor.flatten()[:1].expand(tensor.shape) if tensor.numel() else tensor
        elif change == 8 and not tensor.is_floating_point() and tensor.numel():
            tensor = tensor.clone()
            tensor.view(-1)[rng.randrange(tensor.numel())] = rng.choice(
                [-2, -(2**31), 2**31 - 1, 10**6, tensor.numel()]
            )
        elif change == 9:
            tensor = tensor.to_sparse()
        elif change == 10:
            tensor = tensor.numpy() if tensor.dtype != torch.bfloat16 else tensor.tolist()
    if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and rng.random() < 0.3:
        tensor = tensor.clone().requires_grad_()
    return tensor


def spoil(rng, arguments):
    """Change one argument or two, or take one away, or add one."""
    arguments = dict(arguments)
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice(list(arguments))
        kind = rng.random()
        if kind < 0.7 and isinstance(arguments[name], torch.Tensor):
            arguments[name] = odd_tensor(rng, arguments[name])
        elif kind < 0.95:
            arguments[name] = rng.choice(ODDITIES)
        elif len(arguments) > 1 and kind < 0.98:
            del arguments[name]
        else:
            arguments["more"] = rng.choice(ODDITIES)
    return arguments


def sequence(rng):
    length, dtype = rng.choice([1, 7, 64, 70]), rng.choice(DTYPES[:4])
    return {
        "u": torch.randn(2, 6, length).to(dtype),
        "delta": torch.rand(2, rng.choice([1, 2, 6]), length).to(dtype),
        "A": -torch.rand(6, 3),
        "B": torch.randn(2, 2, 3, length).to(dtype),
        "C": torch.randn(2, 2, 3, length).to(dtype),
        "D": torch.randn(6),
        "z": torch.randn(2, 6, length).to(dtype),
        "delta_bias": torch.rand(6),
        "delta_softplus": True,
        "return_last_state": True,
        "out_dtype": rng.choice([None, torch.float32]),
    }


def image_map(rng):
    dtype = rng.choice(DTYPES[:4])
    elsewhere = rng.choice([None, torch.randint(-1, 9, (4, 12)).int()])
    return {
        "x": torch.randn(2, 12, 5).to(dtype),
        "x_dbl": torch.randn(2, 12, rng.choice([1, 4]), 8).to(dtype),
        "routes": ops.routes.cross2d(3, 4),
        "A": -torch.rand(20, 3),
        "dt_weight": torch.rand(4, 5, 2),
        "dt_bias": torch.rand(4, 5),
        "D": torch.rand(20),
        "out_routes": elsewhere,
        "num_out": None if elsewhere is None else 9,
        "merge": rng.choice(["sum", "none"]),
        "out_dtype": None,
    }


def call_op(rng):
    arguments, op = rng.choice(
        [(sequence(rng), ops.selective_scan), (image_map(rng), ops.selective_scan_2d)]
    )
    result = op(**spoil(rng, arguments))
    result = result[0] if isinstance(result, tuple) else result
    if isinstance(result, torch.Tensor) and result.requires_grad:
        result.sum().backward()


def call_registered_op(rng):
    """Call the registered ops directly, without the Python checks, forward and backward."""
    t = sequence(rng)
    t["delta"] = t["delta"][:, :1].expand(-1, 6, -1).contiguous()
    scan = [t[name] for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")]
    m = image_map(rng)
    table = m["routes"]
    scan_2d = [m["x"], m["x_dbl"], table, table, m["A"], m["dt_weight"], m["dt_bias"], m["D"]]
    states = torch.zeros(2, 2, (t["u"].shape[2] - 1) // 64, 3, 3)
    gates, scale = torch.rand(2, 4, 5), rng.choice([None, m["x"]])
    merged = torch.randn(2, 12, 4, 5).to(m["x"].dtype)
    calls = {
        "normalized_means": [merged, scale, 1e-5],
        "normalized_means_backward": [gates, merged, scale, 1e-5],
        "gated_sum": [merged, gates, scale],
        "gated_sum_backward": [m["x"], merged, gates, scale],
        "selective_scan": [*scan, True, None, rng.random() < 0.5],
        "selective_scan_backward": [t["u"], *scan, states, True],
        "selective_scan_2d": [*scan_2d, 12, True, None, rng.random() < 0.5],
        "selective_scan_2d_backward": [m["x"], *scan_2d, torch.zeros(2, 4, 0, 3, 5), True],
    }
    name = rng.choice(list(calls))
    arguments = spoil(rng, dict(zip(map(str, range(20)), calls[name])))
    getattr(torch.ops.mmvssm, name)(*arguments.values())


def call_routes(rng):
    build = rng.choice(
        [
            lambda *a: ops.routes.route_set(rng.choice(["cross2d", "atrous", "bidi", "w3"]), *a),
            lambda *a: ops.RouteSet(odd_tensor(rng, ops.routes.cross2d(2, 3)), *a[:1]),
            lambda *a: ops.routes.directions(["h", rng.choice(["w2", "v_flip", "q", 3])], *a),
        ]
    )
    small = [value for value in ODDITIES if not isinstance(value, int) or abs(value) < 100]
    build(*(rng.choice([*small, 3, 4]) for _ in range(2)))


LAYERS = {
    "SS2D": dict(embed_dims=8, d_state=2, ssm_ratio=1.0, gate=True, scan="cross2d", act="silu"),
    "MS2D": dict(embed_dims=8, d_state=2, gate=True),
    "MambaMixer": dict(embed_dims=8, d_state=2, scan="rows", depth=2),
    "Attention": dict(embed_dims=8, num_heads=2),
    "Mlp": dict(embed_dims=8, hidden_dims=8, act="gelu", gated=True, dwconv=False),
    "PatchEmbed": dict(in_channels=3, embed_dims=8, patch_size=2, norm="ln", stride=2),
    "ConvStem": dict(in_channels=3, embed_dims=8, patch_size=4, norm="bn"),
    "ChannelGate": dict(channels=8),
}
STAGES = dict(embed_dims=8, depths=(1, 1), mixer=dict(d_state=2))
PLAIN = dict(embed_dims=8, num_layers=2, patch_size=8, mixer=dict(d_state=2))
BACKBONES = {
    "VMamba": dict(arch=STAGES, out_indices=(0, 1), out_norm=True, img_size=32),
    "EfficientVMamba": dict(arch=STAGES, out_indices=(1,)),
    "MSVMamba": dict(arch=dict(embed_dims=8, depths=(1, 1)), out_indices=(1,)),
    "LocalVMamba": dict(arch=STAGES, out_indices=(1,)),
    "MambaVision": dict(arch=dict(STAGES, num_heads=(), window_sizes=()), out_indices=(1,)),
    "Vim": dict(arch=PLAIN, out_indices=1, img_size=32, out_type="featmap"),
    "LocalVim": dict(arch=PLAIN, out_indices=1, img_size=32, out_type="featmap"),
}
# numbers that would build large networks are not malformed
SMALL = [value for value in ODDITIES if not isinstance(value, int | float) or abs(value) < 100]


def call_layer(rng):
    name = rng.choice(list(LAYERS))
    arguments = dict(LAYERS[name])
    if rng.random() < 0.7:
        arguments[rng.choice(list(arguments))] = rng.choice(SMALL)
    layer = getattr(layers, name)(**arguments)
    given = (
        torch.randn(1, 3, 8, 8) if name in ("PatchEmbed", "ConvStem") else torch.randn(1, 4, 4, 8)
    )
    layer(odd_tensor(rng, given))


def call_config(rng):
    name = rng.choice(list(BACKBONES))
    config = dict(BACKBONES[name], type=f"mmvssm.{name}")
    kind = rng.random()
    if kind < 0.4:
        arch = dict(config["arch"])
        arch[rng.choice([*arch, "norm", "mlp_ratio", "stem", "patch_size"])] = rng.choice(SMALL)
        config["arch"] = arch
    elif kind < 0.8:
        more = ("drop_path_rate", "frozen_stages", "in_channels", "odd_size", "type", "init_cfg")
        config[rng.choice([*config, *more])] = rng.choice(SMALL)
    backbone = MODELS.build(config)
    image = torch.randn(1, 3, 32, 32)
    backbone(image if kind < 0.5 else odd_tensor(rng, image))


CALLS = {
    call_op: 6,
    call_registered_op: 6,
    call_routes: 3,
    call_layer: 3,
    call_config: 2,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_wrong_calls_are_refused_or_work(number):
    outcomes = Counter()
    for seed in range(number):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        (call,) = rng.choices(list(CALLS), CALLS.values())
        if call is call_registered_op and not ops.built_devices():
            continue
        try:
            call(rng)
            outcomes[call.__name__, "worked"] += 1
        except REFUSALS as error:
            text = str(error)
            assert text and "INTERNAL ASSERT" not in text, (seed, text)
            if call is call_op and not isinstance(error, (TypeError, ValueError)):
                assert "memory" in text or "Storage size" in text, (seed, text)
            outcomes[call.__name__, type(error).__name__] += 1
        except Exception as error:
            raise AssertionError(f"call {seed} of {call.__name__} raised {error!r}") from error
    for (name, kind), count in sorted(outcomes.items()):
        print(f"{name} {kind}: {count}")
    refused = sum(count for (_, kind), count in outcomes.items() if kind != "worked")
    assert refused > number // 2 and outcomes["call_op", "worked"] >= 5
