"""The scan along routes: every implementation against the float64 definition."""

import pytest
import torch

from mmvssm import ops

BACKENDS = ["torch", *(["cpu"] if "cpu" in ops.built_devices() else [])]
# batch, pixels, channels, routes, d_state, dt_rank
SHAPES = [
    (2, 35, 33, 4, 3, 2),
    (1, 1, 4, 1, 16, 1),
    (2, 81, 17, 2, 5, 17),
    (3, 72, 96, 4, 1, 6),
    (1, 9, 16, 4, 16, 48),
    (5, 130, 3, 3, 20, 3),
]
FORMS = [
    {},
    {"x_per_route": True},
    {"table": "repeats", "shared_projection": True},
    {"table": "separate", "merge": "none"},
    {"table": "repeats", "merge": "none", "has_D": False},
    {"table": "separate", "x_per_route": True, "shared_projection": True},
    {"table": "separate", "x_per_route": True, "merge": "none"},
]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with ops.backend(request.param):
        yield request.param


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32(backend, scan_2d_errors, shape, form):
    error = scan_2d_errors(*shape, **form)
    assert error.output < 1e-6
    assert error.grad < 1e-5, error.grads


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_input_float_state(backend, scan_2d_errors, dtype):
    error = scan_2d_errors(2, 70, 19, 4, 3, 6, dtype=dtype, table="separate")
    assert error.output < 1e-6  # the inputs were rounded beforehand
    assert error.grad < {torch.float16: 1e-3, torch.bfloat16: 5e-3}[dtype], error.grads


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_float64(backend, scan_2d_errors, form):
    error = scan_2d_errors(2, 70, 9, 3, 3, 2, dtype=torch.float64, **form)
    assert max(error.output, error.grad) < 1e-13


def problem(height=4, width=5, channels=6, d_state=2, dt_rank=3, batch=2):
    pixels = height * width
    return {
        "x": torch.randn(batch, pixels, channels),
        "x_dbl": torch.randn(batch, pixels, 4, dt_rank + 2 * d_state),
        "routes": ops.routes.cross2d(height, width),
        "A": -torch.rand(4 * channels, d_state),
        "dt_weight": torch.randn(4, channels, dt_rank),
        "dt_bias": torch.randn(4, channels) - 2,
        "D": torch.randn(4 * channels),
    }


def test_equals_four_flipped_scans(backend):
    """The route form agrees with copying, flipping and transposing the map."""
    height, width = 4, 5
    case = problem(height, width)
    x, dt, B, C = case["x"], *case["x_dbl"].split([3, 2, 2], dim=-1)
    expected = torch.zeros_like(x)
    for k in range(4):

        def along(t, k=k):  # (Bt, P, F) -> (Bt, F, L) in the order of route k
            grid = t.unflatten(1, (height, width))
            grid = grid.transpose(1, 2) if k % 2 else grid
            line = grid.flatten(1, 2)
            return (line.flip(1) if k >= 2 else line).transpose(1, 2)

        rows = slice(6 * k, 6 * (k + 1))
        y = ops.selective_scan(
            along(x),
            case["dt_weight"][k] @ along(dt[:, :, k]),
            case["A"][rows],
            along(B[:, :, k]),
            along(C[:, :, k]),
            case["D"][rows],
            delta_bias=case["dt_bias"][k],
            delta_softplus=True,
        ).transpose(1, 2)
        y = y.flip(1) if k >= 2 else y
        if k % 2:
            y = y.unflatten(1, (width, height)).transpose(1, 2).flatten(1, 2)
        expected += y
    torch.testing.assert_close(ops.selective_scan_2d(**case), expected, rtol=1e-4, atol=1e-5)


def test_zero_token_decays_the_state(backend):
    """Between two pixels, each -1 multiplies what is carried by exp(softplus(bias) A)."""
    case = problem(1, 2, channels=1, d_state=1, dt_rank=1, batch=1)
    case.update(
        A=torch.full((1, 1), -0.7),
        dt_weight=torch.zeros(1, 1, 1),
        dt_bias=torch.zeros(1, 1),
        x_dbl=torch.ones(1, 2, 1, 3),
        x=torch.tensor([[[1.0], [0.0]]]),
        D=None,
    )
    near = ops.selective_scan_2d(**{**case, "routes": torch.tensor([[0, 1]]).int()})
    far = ops.selective_scan_2d(**{**case, "routes": torch.tensor([[0, -1, -1, 1]]).int()})
    decay = torch.tensor(2.0).log().mul(-0.7).exp()
    torch.testing.assert_close(far[0, 1], near[0, 1] * decay**2)


def test_output_shapes_and_dtypes(backend):
    case = problem()
    assert ops.selective_scan_2d(**case).shape == (2, 20, 6)
    apart = ops.selective_scan_2d(**case, merge="none")
    assert apart.shape == (2, 20, 4, 6)
    torch.testing.assert_close(apart.sum(2), ops.selective_scan_2d(**case))
    half = {**case, "x": case["x"].bfloat16(), "x_dbl": case["x_dbl"].bfloat16()}
    assert ops.selective_scan_2d(**half).dtype == torch.bfloat16
    assert ops.selective_scan_2d(**half, out_dtype=torch.float32).dtype == torch.float32


def test_strided_input_gives_the_same_numbers(backend):
    case = problem()
    strided = {**case, "x": case["x"].transpose(0, 1).contiguous().transpose(0, 1)}
    assert not strided["x"].is_contiguous()
    assert torch.equal(ops.selective_scan_2d(**strided), ops.selective_scan_2d(**case))


def test_empty_batch(backend):
    assert ops.selective_scan_2d(**problem(batch=0)).shape == (0, 20, 6)


def test_repeated_runs_are_bit_identical(backend):
    case = problem(20, 20, channels=40)
    assert torch.equal(ops.selective_scan_2d(**case), ops.selective_scan_2d(**case))
