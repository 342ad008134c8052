"""Route tables against the reference's index tables, their registry and their cache."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mmvssm.ops import routes
from mmvssm.ops.routes import read_scan, route_set

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
def test_multi_scale_routes_are_equal_to_the_reference(given):
    assert routes.rows(*given["grid"]).tolist() == [given["full"]]
    height, width = given["small_grid"]
    found = route_set(("h_flip", "v", "v_flip"), height, width)
    assert found.read.tolist() == given["small"]
    assert found.joined.read.view(3, -1).tolist() == given["small"]
    assert found.joined_apart.out.view(3, -1).tolist() == [
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
    _, (target,) = routes.directions(height, width, names=names, output_order="upstream")
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
    """A class token in the middle of the pixels comes at that step of every padded order."""
    found = route_set(("h", "v", "w2", "w2_flip"), 2, 3, cls_positions=(3,))
    assert found.num_pixels == 7
    assert found.read.tolist() == [
        [0, 1, 2, 3, 4, 5, 6, -1, -1],
        [0, 4, 1, 3, 5, 2, 6, -1, -1],
        [0, 1, 4, 3, 5, 2, -1, 6, -1],
        [-1, 6, -1, 3, 2, 5, 4, 1, 0],
    ]
    found = route_set(read_scan(("h", "v"), "upstream"), 2, 3, cls_positions=(3,))
    # columns of three pixels instead of two
    assert found.out.tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 2, 5, 3, 1, 4, 6]]


def test_bidirectional_places_class_tokens_itself():
    found = route_set("bidirectional", 1, 3, cls_positions=(0, 4))
    assert found.read.tolist() == [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]


@pytest.mark.parametrize("name", ["d", "w", "w0", "w2_flop", "h_flip_flip", "H", "", 3])
def test_unknown_directions(name):
    with pytest.raises(ValueError, match=f"'h' .rows., 'v' .columns. or 'wK'.*got {name!r}"):
        routes.directions(2, 3, names=("h", name))


def test_route_sets_are_kept():
    assert route_set("cross2d", 6, 7) is route_set(routes.cross2d, 6, 7)
    assert route_set("cross2d", 6, 7) is not route_set("cross2d", 7, 6)
    assert route_set(("h", "v"), 6, 7) is route_set(["h", "v"], 6, 7)
    assert route_set("cross2d", 6, 7, device="meta").read.is_meta


def test_tables_made_in_inference_mode_serve_training():
    with torch.inference_mode():
        found = route_set("atrous", 11, 13)
        tables = [found.read, found.by_step.read, found._gather_index, found._place]
    assert not any(table.is_inference() for table in tables)
    assert route_set("atrous", 11, 13) is found


def test_tables_made_without_data_are_not_kept():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        route_set("cross2d", 17, 19)
    assert type(route_set("cross2d", 17, 19).read) is torch.Tensor


@pytest.mark.parametrize("size", [(0, 3), (3, -1)])
def test_size_must_be_positive(size):
    with pytest.raises(ValueError, match=f"at least one pixel, got {size[0]}x{size[1]}"):
        route_set("cross2d", *size)


@pytest.fixture
def registered():
    """Unregisters, after a test, the names that it registered."""
    before = dict(routes.SCANS)
    yield routes.register_routes
    routes.SCANS.clear()
    routes.SCANS.update(before)


def test_registered_builder(registered):
    @registered("snake", titles=("there", "back"))
    def snake(height, width):
        pixels = torch.arange(height * width, dtype=torch.int32).view(height, width)
        pixels[1::2] = pixels[1::2].flip(1)
        return torch.stack([pixels.flatten(), pixels.flatten().flip(0)])

    scan = read_scan("snake")
    assert scan.titles == ("there", "back") and scan.num_routes == 2
    assert route_set("snake", 2, 3).read.tolist() == [[0, 1, 2, 5, 4, 3], [3, 4, 5, 2, 1, 0]]
    assert route_set(snake, 2, 3) is route_set("snake", 2, 3)
    with pytest.raises(ValueError, match=r"'snake' are already registered.*choose another"):
        registered("snake")(lambda height, width: None)


def test_function_without_registration():
    scan = read_scan(lambda height, width: torch.zeros(3, 1, dtype=torch.int32))
    assert scan.num_routes == 3 and scan.titles == ()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda h, w: torch.zeros(1, 2), TypeError, "over 2x3 pixels: routes must be an int32"),
        (lambda h, w: torch.zeros(2, dtype=torch.int32), ValueError, "must have 2 dimensions"),
        (lambda h, w: torch.full((1, 2), h * w).int(), ValueError, "from -1 to 5, got.*to 6"),
        (lambda h, w: [[0, 1]], TypeError, "routes must be a torch.Tensor, got list"),
        (
            lambda h, w: (torch.zeros(1, 2).int(), torch.zeros(1, 3).int()),
            ValueError,
            r"out_routes must have shape \(K, L\) = \(1, 2\).*got \(1, 3\)",
        ),
    ],
)
def test_builders_that_return_no_routes(build, error, message):
    with pytest.raises(error, match=f"scan '<lambda>'.*{message}"):
        route_set(build, 2, 3)


def test_broken_promise_of_disjoint_routes(registered):
    registered("twice", disjoint=True)(lambda h, w: torch.zeros(2, 1, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"'twice' was registered as disjoint.*share a pixel"):
        route_set("twice", 2, 2)


@pytest.mark.parametrize(
    ("scan", "options", "error", "message"),
    [
        ("snail", {}, ValueError, "scan must be one of 'cross2d', .*register_routes.*got 'snail'"),
        ((), {}, ValueError, "at least one direction"),
        (3, {}, TypeError, "scan must be a registered name.*got int"),
        ("rows", {"output_order": "upstream"}, ValueError, "output_order needs directions"),
        (("h",), {"output_order": "up"}, ValueError, "one of 'inverse', 'upstream', got 'up'"),
    ],
)
def test_what_is_no_scan(scan, options, error, message):
    with pytest.raises(error, match=message):
        read_scan(scan, **options)


def test_a_class_token_is_on_all_routes_of_a_disjoint_scan():
    found = route_set("atrous", 2, 2, cls_positions=(2,))
    assert not found.is_disjoint and route_set("atrous", 2, 2).is_disjoint
    assert found.read.tolist() == [[0, 2], [3, 2], [1, 2], [4, 2]]


def test_errors_of_a_builder_name_the_scan():
    def sevenths(height, width):
        return torch.arange(height * width).view(-1, 7).int()

    with pytest.raises(ValueError, match="scan 'sevenths' over 4x4 pixels: shape"):
        read_scan(sevenths).num_routes  # noqa: B018


def test_builders_must_be_hashable():
    @dataclass
    class Builder:
        step: int

        def __call__(self, height, width):
            return torch.zeros(1, 1, dtype=torch.int32)

    with pytest.raises(TypeError, match=r"scan must be hashable.*got Builder.*frozen dataclass"):
        read_scan(Builder(2))


def test_titles_must_be_those_of_the_routes(registered):
    from mmvssm.models.layers.scans import name_routes

    registered("two", titles=("one",))(lambda h, w: torch.zeros(2, 1, dtype=torch.int32))
    with pytest.raises(ValueError, match="'two' must name its 2 routes, got 1"):
        name_routes(read_scan("two"), 2, 2)
