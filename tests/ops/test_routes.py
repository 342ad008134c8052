"""Route tables against the reference's own index tables, and their cache."""

import json
from pathlib import Path

import pytest
import torch

from mmvssm.ops import routes

GOLDEN = Path(__file__).parents[1] / "golden"
TABLES = json.loads((GOLDEN / "ops" / "cross_scan.json").read_text())["tables"]
ATROUS = json.loads((GOLDEN / "efficient_vmamba" / "scan_maps.json").read_text())["maps"]
MULTI_SCALE = json.loads((GOLDEN / "msvmamba" / "scan_maps.json").read_text())["maps"]
DIRECTIONS = json.loads((GOLDEN / "local_mamba" / "scan_maps.json").read_text())["maps"]


@pytest.mark.parametrize("table", TABLES, ids=lambda t: f"{t['mode']}-{t['height']}x{t['width']}")
def test_equal_to_the_reference(table):
    build = getattr(routes, table["mode"])
    result = build(table["height"], table["width"])
    assert result.dtype == torch.int32
    assert result.tolist() == table["scan"]


@pytest.mark.parametrize("given", ATROUS, ids=lambda given: "x".join(map(str, given["grid"])))
def test_atrous_is_equal_to_the_reference(given):
    result = routes.atrous(*given["grid"])
    assert result.dtype == torch.int32
    assert result.tolist() == given["scan"]
    pixels = range(given["grid"][0] * given["grid"][1])
    assert result.flatten()[given["merge"]].tolist() == list(pixels)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((3, 5), [[0, 2, 4, 10, 12, 14], [5, -1, 7, -1, 9, -1], [1, 3, -1, 11, 13, -1],
                  [6, -1, 8, -1, -1, -1]]),
        ((2, 2), [[0], [2], [1], [3]]),
        ((1, 1), [[0], [-1], [-1], [-1]]),
        ((1, 3), [[0, 2], [-1, -1], [1, -1], [-1, -1]]),
        ((3, 1), [[0, 2], [1, -1], [-1, -1], [-1, -1]]),
    ],
)  # fmt: skip
def test_atrous_fills_odd_sides_with_zero_tokens(size, expected):
    assert routes.atrous(*size).tolist() == expected


@pytest.mark.parametrize("given", MULTI_SCALE, ids=lambda given: "x".join(map(str, given["grid"])))
def test_three_orders_are_equal_to_the_reference(given):
    assert routes.rows(*given["grid"]).tolist() == [given["full"]]
    height, width = given["small_grid"]
    result = routes.three_orders(height, width)
    assert result.dtype == torch.int32
    assert result.view(3, -1).tolist() == given["small"]
    apart = routes.three_orders(height, width, apart=True)
    assert apart.shape == result.shape and apart.dtype == torch.int32
    assert apart.view(3, -1).tolist() == [
        [order * height * width + pixel for pixel in pixels]
        for order, pixels in enumerate(given["small"])
    ]


@pytest.mark.parametrize(
    "given", DIRECTIONS, ids=lambda g: "-".join([*map(str, g["grid"]), g["direction"]])
)
def test_directions_are_equal_to_the_reference(given):
    (height, width), names = given["grid"], (given["direction"],)
    (order,) = routes.directions(height, width, names=names)
    assert order.dtype == torch.int32
    assert order.tolist() == given["order"]
    pixels = list(range(height * width))
    assert order[given["gather_back"]].tolist() == pixels
    (target,) = routes.directions_upstream_out_routes(height, width, names=names)
    back = given.get("gather_back_upstream", given["gather_back"])
    assert target[back].tolist() == pixels
    assert sorted(target.tolist()) == sorted(order.tolist())


def test_shorter_directions_end_with_zero_tokens():
    table = routes.directions(2, 3, names=("h_flip", "w2", "w3_flip"))
    assert table.tolist() == [
        [5, 4, 3, 2, 1, 0, -1, -1, -1],
        [0, 1, 3, 4, 2, -1, 5, -1, -1],
        [-1, -1, -1, 5, 4, 3, 2, 1, 0],
    ]


def test_directions_with_a_class_token():
    """The token in the middle of the pixels comes at that step of every padded order."""
    table = routes.directions(2, 3, names=("h", "v", "w2", "w2_flip"), cls_position=3)
    assert table.tolist() == [
        [0, 1, 2, 3, 4, 5, 6, -1, -1],
        [0, 4, 1, 3, 5, 2, 6, -1, -1],
        [0, 1, 4, 3, 5, 2, -1, 6, -1],
        [-1, 6, -1, 3, 2, 5, 4, 1, 0],
    ]
    targets = routes.directions_upstream_out_routes(2, 3, names=("h", "v"), cls_position=3)
    # columns of three pixels instead of two
    assert targets.tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 2, 5, 3, 1, 4, 6]]


@pytest.mark.parametrize("name", ["d", "w", "w0", "w2_flop", "h_flip_flip", "H", "", 3])
def test_unknown_directions(name):
    with pytest.raises(ValueError, match=f"'h' .rows., 'v' .columns. or 'wK'.*got {name!r}"):
        routes.directions(2, 3, names=("h", name))


def test_forward_backward():
    assert routes.forward_backward(3).tolist() == [[0, 1, 2], [2, 1, 0]]


def test_tables_are_kept():
    assert routes.cross2d(6, 7) is routes.cross2d(6, 7)
    assert routes.cross2d(6, 7) is not routes.cross2d(7, 6)


def test_table_made_in_inference_mode_serves_training():
    with torch.inference_mode():
        table = routes.cross2d(11, 13)
    assert not table.is_inference()
    assert not routes.cross2d(11, 13).is_inference()


def test_table_made_without_data_is_not_kept():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        routes.cross2d(17, 19)
    assert type(routes.cross2d(17, 19)) is torch.Tensor


@pytest.mark.parametrize("size", [(0, 3), (3, -1)])
def test_size_must_be_positive(size):
    with pytest.raises(ValueError, match="cross2d must be at least 1"):
        routes.cross2d(*size)
