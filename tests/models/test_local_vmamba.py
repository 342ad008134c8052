"""LocalVMamba: the block against a plain float64 implementation, and its direction tables."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from mmvssm.models import SS2D, LocalVMamba
from mmvssm.models.backbones.local_directions import LOCAL_VIM_TINY, UNSEARCHED, read_directions
from mmvssm.models.layers import SEARCH_DIRECTIONS, RouteMerge

GOLDEN = Path(__file__).parents[1] / "golden" / "local_mamba"
DIRECTIONS = json.loads((GOLDEN / "directions.json").read_text())
ARCHS = ["tiny", "small", "tiny-search", "small-search"]
MICRO = dict(embed_dims=8, depths=(1, 1, 2, 1), mixer=dict(d_state=2))


def directions_of(model):
    return [m.scan.directions for m in model.modules() if isinstance(m, SS2D)]


def as_tuples(table):
    return [tuple(row) for row in table]


@pytest.mark.parametrize("arch", ARCHS)
def test_directions_of_the_published_networks(arch):
    with torch.device("meta"):
        model = LocalVMamba(arch)
    assert directions_of(model) == as_tuples(DIRECTIONS[f"local_vssm_{arch.replace('-', '_')}"])
    searched = {m.merge.weights is not None for m in model.modules() if isinstance(m, SS2D)}
    assert searched == {arch.endswith("search")}


def test_directions_of_local_vim():
    assert list(LOCAL_VIM_TINY) == as_tuples(DIRECTIONS["local_vim_tiny"])
    assert as_tuples(DIRECTIONS["local_vim_tiny_wo_search"]) == [UNSEARCHED] * 20
    assert list(SEARCH_DIRECTIONS) == DIRECTIONS["local_vim_tiny_search"][0]


def test_default_arguments():
    with torch.device("meta"):
        model = LocalVMamba()
        assert directions_of(LocalVMamba(MICRO)) == [UNSEARCHED] * 5
    assert model.embed_dims == [96, 192, 384, 768] and model.out_indices == (0, 1, 2, 3)
    assert len(model.stages[2].blocks) == 9


def order_of(name, height, width):
    """Return the visited pixels, None for padding."""
    name, _, flip = name.partition("_")
    if name == "h":
        order = [(i, j) for i in range(height) for j in range(width)]
    elif name == "v":
        order = [(i, j) for j in range(width) for i in range(height)]
    else:
        side = int(name[1:])
        rows, columns = math.ceil(height / side), math.ceil(width / side)
        order = [
            (a * side + i, b * side + j)
            for a in range(rows)
            for b in range(columns)
            for i in range(side)
            for j in range(side)
        ]
    order = [i * width + j if i < height and j < width else None for i, j in order]
    return order[::-1] if flip else order


def target_of(name, height, width, output_order):
    order = order_of(name, height, width)
    if output_order == "upstream" and name.startswith("v"):
        # the order is applied to the outputs again, instead of its inverse
        steps = [j * height + i for i in range(height) for j in range(width)]
        return steps[::-1] if name.endswith("flip") else steps
    return order


def plain_scan(mixer, k, u, order, target):
    """Scan direction k of u (B, P, D), with zero tokens where the map is padded."""
    rank, states, channels = mixer.dt_rank, mixer.d_state, u.shape[2]
    rows = slice(k * channels, (k + 1) * channels)
    A, D = -mixer.A_logs[rows].exp(), mixer.Ds[rows]
    h = u.new_zeros(u.shape[0], channels, states)
    pieces = [None] * u.shape[1]
    for read, written in zip(order, target):
        token = torch.zeros_like(u[:, 0]) if read is None else u[:, read]
        dt, B, C = (token @ mixer.x_proj_weight[k].T).split([rank, states, states], dim=-1)
        step = F.softplus(dt @ mixer.dt_projs_weight[k].T + mixer.dt_projs_bias[k])
        h = torch.exp(step[..., None] * A) * h + (step * token)[..., None] * B[:, None]
        if written is not None:
            pieces[written] = (h * C[:, None]).sum(-1) + D * token
    return torch.stack(pieces, 1)


def plain_gate(gate, y):
    """Gate y (B, P, D)."""
    norm = F.layer_norm(y, y.shape[-1:], gate.norm.weight, gate.norm.bias, 1e-5)
    hidden = F.gelu(F.linear(norm.mean(1), gate.global_reduce.weight, gate.global_reduce.bias))
    g = torch.sigmoid(F.linear(hidden, gate.channel_select.weight, gate.channel_select.bias))
    return y * g[:, None]


def plain_block(block, x, merge, output_order):
    """Apply the block to x (B, H, W, C)."""
    mixer, (height, width) = block.mixer, x.shape[1:3]
    n = F.layer_norm(x, x.shape[-1:], block.norm1.weight, block.norm1.bias)
    u, z = mixer.in_proj(n).chunk(2, -1)
    weight, bias = mixer.conv2d.weight, mixer.conv2d.bias
    u = F.conv2d(u.movedim(-1, 1), weight, bias, padding=1, groups=u.shape[-1])
    u = F.silu(u).flatten(2).mT
    outs = []
    for k, name in enumerate(mixer.scan.directions):
        target = target_of(name, height, width, output_order)
        y = plain_scan(mixer, k, u, order_of(name, height, width), target)
        outs.append(plain_gate(mixer.merge.attn, y))
    if merge == "search":
        outs = [F.layer_norm(y, y.shape[-1:]) for y in outs]
        outs = [p * y for p, y in zip(mixer.merge.weights.flatten().softmax(0), outs)]
    y = F.layer_norm(sum(outs), u.shape[-1:], mixer.out_norm.weight, mixer.out_norm.bias)
    return x + mixer.out_proj(y.view(z.shape) * F.silu(z))


TABLES = {
    "odd windows": [["w2", "w2_flip", "w7", "w7_flip"]] * 5,
    "rows and columns": [["h", "h_flip", "v", "v_flip"]] * 5,
    "other windows": [["w3", "v_flip", "w4_flip"]] * 5,
    "one": [["w2_flip"]] * 5,
    "search": "search",
}


@pytest.mark.parametrize(
    ("name", "size", "output_order"),
    [
        *((name, size, "inverse") for name in TABLES for size in [(3, 5), (9, 8)]),
        *(("search", size, "inverse") for size in [(1, 1), (1, 4), (4, 4)]),
        *((name, (6, 4), "upstream") for name in ("rows and columns", "other windows", "search")),
    ],
)
def test_values_and_gradients(name, size, output_order):
    directions = TABLES[name]
    model = LocalVMamba(MICRO, directions=directions, output_order=output_order, drop_path_rate=0)
    block = model.stages[0].blocks[0].double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, *size, 8, dtype=torch.float64, requires_grad=True)
    inputs = (x, *block.parameters())
    merge = "search" if directions == "search" else "gated"
    expected = plain_block(block, x, merge, output_order)
    cotangent = torch.randn_like(expected)
    expected_grads = torch.autograd.grad((expected * cotangent).sum(), inputs)
    got = block(x)
    grads = torch.autograd.grad((got * cotangent).sum(), inputs)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    for grad, expected_grad in zip(grads, expected_grads):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-8, atol=1e-8)


def test_ways_back_differ_in_columns_of_maps_that_are_not_square():
    table = [["h", "v"], *[["h", "w2"]] * 4]
    model, other = (LocalVMamba(MICRO, table, way) for way in ("inverse", "upstream"))
    other.load_state_dict(model.state_dict())
    for size, equal in (((32, 32), True), ((32, 64), False)):
        image = torch.randn(1, 3, *size)
        maps = [m.eval()(image)[0] for m in (model, other)]
        assert torch.allclose(*maps, atol=1e-6) == equal
    plain = LocalVMamba(MICRO, [["h", "w2"]] * 5)
    upstream = LocalVMamba(MICRO, [["h", "w2"]] * 5, "upstream")
    upstream.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 32, 64)
    torch.testing.assert_close(plain.eval()(image)[3], upstream.eval()(image)[3])


def test_table_from_a_config():
    table = [["h", "v_flip"], ["w2", "w7_flip"], ["v", "h"], ["w2", "w2_flip"], ["w7", "h"]]
    text = f"model = dict(type='mmvssm.LocalVMamba', arch={MICRO}, directions={table})"
    model = MODELS.build(Config.fromstring(text, ".py").model)
    assert directions_of(model) == as_tuples(table)
    assert MODELS.build(dict(type="mmvssm.LocalVMamba", arch=dict(MICRO, directions=table)))


def test_search_starts_almost_even_and_is_trained():
    model = LocalVMamba(MICRO, directions="search", drop_path_rate=0)
    model.init_weights()
    merges = [m for m in model.modules() if isinstance(m, RouteMerge)]
    assert len(merges) == 5
    for merge in merges:
        assert merge.weights.shape == (8, 1, 1, 1)
        assert 0 < merge.weights.std() < 3e-3
        torch.testing.assert_close(
            merge.probabilities(), torch.full((8,), 1 / 8), rtol=0, atol=1e-3
        )
    model(torch.randn(2, 3, 32, 48))[3].square().sum().backward()
    assert all((merge.weights.grad != 0).all() for merge in merges)


def test_search_of_a_published_network():
    with torch.device("meta"):
        model = LocalVMamba("tiny", directions="search")
    assert directions_of(model) == [SEARCH_DIRECTIONS] * 15 and model.embed_dims[0] == 96


FOUR = ["h", "h_flip", "w2", "w2_flip"]


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        ([FOUR] * 4, "each of 5 layers, got 4: layer 4 has none"),
        ([FOUR] * 7, "each of 5 layers, got 7: there is no layer 5"),
        (
            [FOUR, FOUR, FOUR[:3], FOUR, FOUR],
            r"layer 2 must be 4 names, as in the other layers, got 3",
        ),
        ([[*FOUR, "v"], *[FOUR] * 4], "layer 0 must be 4 names, as in the other layers, got 5"),
        ([FOUR, FOUR, FOUR, [], FOUR], r"layer 3 must be a list of names.*got \[\]"),
        ([FOUR, "h", FOUR, FOUR, FOUR], "layer 1 must be a list of names.*got 'h'"),
        ([FOUR, FOUR, FOUR, FOUR, ["h", "x", "w2", "w7"]], "layer 4: .*'h'.*'v'.*'wK'.*got 'x'"),
        ([FOUR, FOUR, FOUR, FOUR, ["h", "w0", "w2", "w7"]], "layer 4: .*got 'w0'"),
        ("all", "directions must be 'search' or a list of names for each layer, got 'all'"),
        (3, "directions must be 'search' or a list of names for each layer, got 3"),
    ],
)
def test_bad_directions(directions, message):
    for arguments in (
        dict(arch=MICRO, directions=directions),
        dict(arch=dict(MICRO, directions=directions)),
    ):
        with pytest.raises(ValueError, match=message), torch.device("meta"):
            LocalVMamba(**arguments)


def test_directions_as_read():
    assert read_directions(None, 2) == ((UNSEARCHED, UNSEARCHED), "gated")
    assert read_directions("search", 1) == ((SEARCH_DIRECTIONS,), "search")
    assert read_directions([["h"], ("w5_flip",)], 2) == ((("h",), ("w5_flip",)), "gated")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(output_order="forth"),
            "output_order must be one of 'inverse', 'upstream', got 'forth'",
        ),
        (dict(arch=dict(MICRO, mixer=dict(scan="bidi"))), "mixer has unknown.*'scan'; known.*gate"),
        (dict(arch=dict(MICRO, mixer=dict(gates=1))), "mixer has unknown.*'gates'"),
        (dict(arch="base"), "arch must be one of 'tiny', 'small', 'tiny-search', 'small-search'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        LocalVMamba(**arguments)


@pytest.mark.parametrize("options", [dict(scan=("h", "x")), dict(scan=("h",), output_order="x")])
def test_mixer_refuses_bad_directions_before_it_scans(options):
    with pytest.raises(ValueError, match=r"got 'x'"):
        SS2D(8, **options)
