"""Bad arguments give a ValueError or TypeError that names argument, value and expectation."""

import pytest
import torch

from mmvssm import ops

BACKENDS = ["torch", *(["cpu"] if "cpu" in ops.built_devices() else [])]


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request):
    with ops.backend(request.param):
        yield request.param


def arguments_1d():
    return {
        "u": torch.randn(2, 6, 10),
        "delta": torch.randn(2, 6, 10),
        "A": -torch.rand(6, 3),
        "B": torch.randn(2, 2, 3, 10),
        "C": torch.randn(2, 2, 3, 10),
        "D": torch.randn(6),
        "delta_bias": torch.randn(6),
    }


def arguments_2d():
    return {
        "x": torch.randn(2, 12, 5),
        "x_dbl": torch.randn(2, 12, 4, 4 + 2 * 3),
        "routes": ops.routes.cross2d(3, 4),
        "A": -torch.rand(20, 3),
        "dt_weight": torch.randn(4, 5, 4),
        "dt_bias": torch.randn(4, 5),
        "D": torch.randn(20),
    }


def with_entry(value):
    table = ops.routes.cross2d(3, 4).clone()
    table[1, 2] = value
    return table


BAD_1D = {
    "u is no tensor": ({"u": [1.0]}, TypeError, "u must be a torch.Tensor, got list"),
    "rank of u": ({"u": torch.randn(6, 10)}, ValueError, r"u must have 3 dimensions.*\(6, 10\)"),
    "integer u": ({"u": torch.ones(2, 6, 10).long()}, TypeError, "u must be one of float32"),
    "dtype of delta": ({"delta": torch.randn(2, 6, 10).half()}, TypeError, "delta.*float16"),
    "dtype of B": ({"B": torch.randn(2, 2, 3, 10).double()}, TypeError, "B must have the dtype"),
    "length of delta": ({"delta": torch.randn(2, 6, 9)}, ValueError, r"delta.*\(2, 6, 10\).*9\)"),
    "rows of delta": ({"delta": torch.randn(2, 4, 10)}, ValueError, "delta.*divides the 6.*got 4"),
    "rows of A": (
        {"A": -torch.rand(5, 3)},
        ValueError,
        r"A must have shape.*\(6, 3\), got \(5, 3\)",
    ),
    "integer A": ({"A": torch.ones(6, 3).long()}, TypeError, "A must be a float tensor"),
    "groups of B": (
        {"B": torch.randn(2, 4, 3, 10)},
        ValueError,
        "B must .* divides the 6 rows of u, got 4",
    ),
    "states of B": ({"B": torch.randn(2, 2, 4, 10)}, ValueError, "B must have shape"),
    "C unlike B": ({"C": torch.randn(2, 1, 3, 10)}, ValueError, "C must have shape"),
    "rank of C": ({"C": torch.randn(2, 3, 10)}, ValueError, "C must have 2 or 4 dimensions"),
    "size of D": ({"D": torch.randn(5)}, ValueError, r"D must have shape.*\(6,\), got \(5,\)"),
    "size of bias": ({"delta_bias": torch.randn(2)}, ValueError, "delta_bias must have shape"),
    "shape of z": ({"z": torch.randn(2, 6, 9)}, ValueError, "z must have shape"),
    "out_dtype": ({"out_dtype": torch.float16}, TypeError, "out_dtype must be None"),
    "device of B": ({"B": torch.randn(2, 2, 3, 10, device="meta")}, ValueError, "B must be on"),
    "no steps": (
        {
            n: torch.randn(2, *s, 0)
            for n, s in {"u": [6], "delta": [6], "B": [2, 3], "C": [2, 3]}.items()
        },
        ValueError,
        "L must be at least 1",
    ),
    "no states": (
        {"A": torch.rand(6, 0), "B": torch.randn(2, 2, 0, 10), "C": torch.randn(2, 2, 0, 10)},
        ValueError,
        "N must be at least 1",
    ),
    "no groups": (
        {"B": torch.randn(2, 0, 3, 10), "C": torch.randn(2, 0, 3, 10)},
        ValueError,
        "K must be at least 1",
    ),
}
BAD_2D = {
    "rank of x": ({"x": torch.randn(12, 5)}, ValueError, "x must have 3 or 4 dimensions"),
    "routes of x": ({"x": torch.randn(2, 12, 3, 5)}, ValueError, "x must have shape"),
    "width of x_dbl": ({"x_dbl": torch.randn(2, 12, 4, 9)}, ValueError, r"x_dbl.*10\), got.*9\)"),
    "routes of x_dbl": ({"x_dbl": torch.randn(2, 12, 2, 10)}, ValueError, "x_dbl must have shape"),
    "dtype of x_dbl": ({"x_dbl": torch.randn(2, 12, 4, 10).half()}, TypeError, "x_dbl.*float16"),
    "rows of A": ({"A": -torch.rand(5, 3)}, ValueError, r"A must have shape.*\(20, 3\)"),
    "shape of dt_weight": ({"dt_weight": torch.randn(5, 4, 4)}, ValueError, "x_dbl|dt_weight"),
    "shape of dt_bias": ({"dt_bias": torch.randn(20)}, ValueError, "dt_bias must have 2"),
    "size of D": ({"D": torch.randn(5)}, ValueError, "D must have shape"),
    "int64 routes": (
        {"routes": ops.routes.cross2d(3, 4).long()},
        TypeError,
        "routes.*int32.*int64",
    ),
    "NaN in routes": (
        {"routes": torch.full((4, 12), float("nan"))},
        TypeError,
        "routes must be an int32 table, got torch.float32",
    ),
    "rank of routes": ({"routes": torch.arange(12).int()}, ValueError, "routes must have 2"),
    "entry too large": ({"routes": with_entry(12)}, ValueError, "routes.*-1 to 11.*to 12"),
    "entry too small": ({"routes": with_entry(-2)}, ValueError, "routes.*from -1 to 11, got.*-2"),
    "no routes": ({"routes": torch.ones(0, 12).int()}, ValueError, "K must be at least 1"),
    "no steps": ({"routes": torch.ones(4, 0).int()}, ValueError, "L must be at least 1"),
    "no pixels": ({"x": torch.randn(2, 0, 5)}, ValueError, "P must be at least 1"),
    "no states": ({"A": torch.rand(20, 0)}, ValueError, "N must be at least 1"),
    "no dt rank": ({"dt_weight": torch.rand(4, 5, 0)}, ValueError, "R must be at least 1"),
    "out_routes shape": (
        {"out_routes": torch.ones(4, 9).int()},
        ValueError,
        "out_routes must have",
    ),
    "out_routes entry": (
        {"out_routes": with_entry(5), "num_out": 5},
        ValueError,
        "out_routes.*-1 to 4",
    ),
    "num_out": ({"num_out": 0}, ValueError, "num_out must be a whole number of at least 1, got 0"),
    "merge": ({"merge": "mean"}, ValueError, "merge must be one of sum, none, got 'mean'"),
    "device": (
        {"x_dbl": torch.randn(2, 12, 4, 10, device="meta")},
        ValueError,
        "x_dbl must be on",
    ),
}


@pytest.mark.parametrize("name", BAD_1D)
def test_selective_scan(name):
    change, error, message = BAD_1D[name]
    with pytest.raises(error, match=message):
        ops.selective_scan(**{**arguments_1d(), **change})


@pytest.mark.parametrize("name", BAD_2D)
def test_selective_scan_2d(name):
    change, error, message = BAD_2D[name]
    with pytest.raises(error, match=message):
        ops.selective_scan_2d(**{**arguments_2d(), **change})


def test_good_arguments_pass():
    ops.selective_scan(**arguments_1d())
    ops.selective_scan_2d(**arguments_2d())


native = pytest.mark.skipif("cpu" not in ops.built_devices(), reason="no compiled kernels")


def raw_2d(**change):
    case = {**arguments_2d(), **change}
    return torch.ops.mmvssm.selective_scan_2d(
        *(case[n] for n in ("x", "x_dbl", "routes")),
        case.get("out_routes", case["routes"]),
        *(case[n] for n in ("A", "dt_weight", "dt_bias", "D")),
        case.get("num_out", 12),
        True,
    )


@native
@pytest.mark.parametrize(
    "name",
    [n for n in BAD_2D if n not in ("merge", "NaN in routes", "device", "out_routes entry")],
)
def test_direct_calls_of_the_registered_op_are_checked_too(name):
    change, error, _ = BAD_2D[name]
    with pytest.raises((error, TypeError, ValueError)):
        raw_2d(**change)


@native
def test_registered_op_refuses_strided_input():
    x = torch.randn(12, 2, 5).transpose(0, 1)
    with pytest.raises(ValueError, match="x must be contiguous"):
        raw_2d(x=x)


@native
@pytest.mark.parametrize(
    "name", sorted(set(BAD_1D) - {"u is no tensor", "shape of z", "device of B"})
)
def test_direct_calls_of_the_1d_op_are_checked_too(name):
    change, _, _ = BAD_1D[name]
    case = {**arguments_1d(), **change}
    out_dtype = case.pop("out_dtype", None)
    with pytest.raises((TypeError, ValueError)):
        torch.ops.mmvssm.selective_scan(**case, out_dtype=out_dtype)
