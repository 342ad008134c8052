"""The CUDA kernels on CUDA tensors: the CPU tests' assertions, and what needs a GPU."""

import pytest
import torch

from mmvssm import ops

pytestmark = pytest.mark.gpu
HALVES = {torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture(autouse=True, params=["cuda", "nvrtc"])
def gpu_backend(request):
    """Kernels that were compiled with the package, and those that NVRTC compiles."""
    try:
        chosen = ops.backend(request.param)
    except RuntimeError as error:
        pytest.skip(str(error))
    with chosen:
        yield


def problem_1d(dtype=torch.float32, batch=2, groups=2, channels=33, d_state=5, length=130):
    def normal(*shape, dtype=torch.float32):
        return torch.randn(*shape, device="cuda").to(dtype).requires_grad_()

    rows = groups * channels
    return {
        "u": normal(batch, rows, length, dtype=dtype),
        "delta": normal(batch, rows, length, dtype=dtype),
        "A": (-3 * torch.rand(rows, d_state, device="cuda")).requires_grad_(),
        "B": normal(batch, groups, d_state, length, dtype=dtype),
        "C": normal(batch, groups, d_state, length, dtype=dtype),
        "D": normal(rows),
        "delta_bias": normal(rows),
    }


def problem_2d(dtype=torch.float32, batch=2, side=20, channels=40, d_state=5, dt_rank=3):
    def normal(*shape, dtype=torch.float32):
        return torch.randn(*shape, device="cuda").to(dtype).requires_grad_()

    pixels = side * side
    return {
        "x": normal(batch, pixels, channels, dtype=dtype),
        "x_dbl": normal(batch, pixels, 4, dt_rank + 2 * d_state, dtype=dtype),
        "routes": ops.routes.cross2d(side, side).cuda(),
        "A": (-3 * torch.rand(4 * channels, d_state, device="cuda")).requires_grad_(),
        "dt_weight": normal(4, channels, dt_rank),
        "dt_bias": normal(4, channels),
        "D": normal(4 * channels),
    }


def gradients(function, case, **options):
    """Return the output and the gradients of all float inputs."""
    leaves = [t for t in case.values() if t.requires_grad]
    y = function(**case, **options)
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), leaves)]


@pytest.mark.parametrize("d_state", [1, 2, 3, 5, 8, 16, 20, 64])
@pytest.mark.parametrize("length", [1, 2, 17, 63, 64, 65, 130, 1000])
def test_sequences_float32(scan_1d_errors, length, d_state):
    error = scan_1d_errors(2, 3, 70, d_state, length, device="cuda")
    assert error.output < 1e-5
    assert error.grad < 2e-5, error.grads


@pytest.mark.parametrize(
    "options",
    [
        {"softplus": False},
        {"has_D": False},
        {"has_bias": False},
        {"has_D": False, "has_bias": False, "softplus": False},
        {"step_scale": 10.0},
    ],
    ids=str,
)
def test_sequences_options(scan_1d_errors, options):
    error = scan_1d_errors(2, 2, 33, 5, 130, device="cuda", **options)
    assert error.output < 1e-5
    assert error.grad < 2e-5, error.grads


@pytest.mark.parametrize("shape", [(2, 4, 96, 16, 196), (1, 1, 1, 1, 1), (3, 2, 200, 20, 65)])
@pytest.mark.parametrize("dtype", HALVES)
def test_sequences_half_input(scan_1d_errors, shape, dtype):
    error = scan_1d_errors(*shape, dtype=dtype, device="cuda")
    assert error.output < 1e-5  # the inputs were rounded beforehand
    assert error.grad < HALVES[dtype], error.grads


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"x_per_route": True},
        {"table": "repeats", "shared_projection": True},
        {"table": "repeats", "merge": "none", "has_D": False},
        {"table": "separate", "merge": "none"},
        {"table": "separate", "x_per_route": True, "shared_projection": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "shape",
    [
        (2, 35, 33, 4, 3, 2),
        (1, 1, 4, 1, 16, 1),
        (2, 81, 17, 2, 5, 17),
        (3, 72, 96, 4, 1, 6),
        (1, 9, 16, 4, 16, 48),
        (2, 196, 384, 4, 16, 24),
        (2, 130, 70, 3, 20, 3),
    ],
    ids=str,
)
def test_routes_float32(scan_2d_errors, shape, form):
    try:
        error = scan_2d_errors(*shape, device="cuda", **form)
    except ValueError as refusal:  # of the backward scan, where a block has 64 KB
        if torch.cuda.get_device_capability() != (7, 5) or "shared memory" not in str(refusal):
            raise
        pytest.skip(str(refusal))
    assert error.output < 1e-5
    assert error.grad < 2e-5, error.grads


@pytest.mark.parametrize("d_state", [1, 16, 20])
@pytest.mark.parametrize("dtype", HALVES)
def test_routes_half_input(scan_2d_errors, dtype, d_state):
    error = scan_2d_errors(2, 70, 99, 4, d_state, 6, dtype=dtype, device="cuda", table="separate")
    assert error.output < 1e-5
    assert error.grad < HALVES[dtype], error.grads


@pytest.mark.parametrize("merge", ["sum", "none"])
@pytest.mark.parametrize("d_state", [1, 20])
@pytest.mark.parametrize("dtype", HALVES)
def test_half_output_is_the_rounded_float_output(dtype, d_state, merge):
    case = {k: t.detach() for k, t in problem_2d(dtype, d_state=d_state).items()}
    half = ops.selective_scan_2d(**case, merge=merge)
    wide = ops.selective_scan_2d(**case, merge=merge, out_dtype=torch.float32)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), wide, rtol=HALVES[dtype], atol=HALVES[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_runs_are_bit_identical(dtype):
    """No atomics: neither outputs nor gradients depend on which block runs when."""
    for function, case, options in (
        (ops.selective_scan, problem_1d(dtype), {"delta_softplus": True}),
        (ops.selective_scan_2d, problem_2d(dtype), {}),
    ):
        first, second = (gradients(function, case, **options) for _ in range(2))
        assert all(torch.equal(one, two) for one, two in zip(first, second))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_map_agrees_with_the_pytorch_path(dtype):
    """A first-stage map of VMamba, far larger than the reference loop could take."""
    case = problem_2d(dtype, batch=4, side=56, channels=192, d_state=16, dt_rank=6)
    with torch.no_grad():
        case["dt_bias"] -= 4
    native = gradients(ops.selective_scan_2d, case, out_dtype=torch.float32)
    with ops.backend("torch"):
        expected = gradients(ops.selective_scan_2d, case, out_dtype=torch.float32)
    for value, want in zip(native, expected):
        bound = 1e-4 if value.dtype == torch.float32 and dtype == torch.float32 else 1e-2
        assert (value.float() - want.float()).norm() < bound * want.float().norm()


def test_current_stream_is_used():
    """Inputs written on a side stream are visible there without synchronizing the device."""
    case = {k: t.detach() for k, t in problem_2d().items()}
    expected = ops.selective_scan_2d(**{**case, "x": 2 * case["x"]})
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        y = ops.selective_scan_2d(**{**case, "x": 2 * case["x"]})
    stream.synchronize()
    assert torch.equal(y, expected)


def test_route_sets_wait_for_no_device():
    """True from the second call on: the first of a size compiles and plans with NVRTC."""
    case = problem_2d()
    routes = ops.routes.route_set("cross2d", 20, 20, device="cuda")
    expected = gradients(ops.selective_scan_2d, case)
    case.pop("routes")
    leaves = list(case.values())

    def run():
        y = ops.selective_scan_2d(**case, routes=routes)
        return [y.detach(), *torch.autograd.grad(y.float().square().sum(), leaves)]

    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b)


def test_cuda_graph_capture():
    case = {k: t.detach() for k, t in problem_2d().items()}
    case["routes"] = ops.routes.route_set("cross2d", 20, 20, device="cuda")
    ops.selective_scan_2d(**case)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.selective_scan_2d(**case)
    case["x"].mul_(3)
    graph.replay()
    assert torch.equal(y, ops.selective_scan_2d(**case))


def test_empty_batch():
    case = problem_2d(batch=0)
    y, *grads = gradients(ops.selective_scan_2d, case)
    assert y.shape == (0, 400, 40)
    assert all(not g.any() for g in grads)
    y, *grads = gradients(ops.selective_scan, problem_1d(batch=0))
    assert y.shape == (0, 66, 130)
    assert all(not g.any() for g in grads)


def test_float64_is_refused():
    case = {k: t.double() for k, t in problem_1d().items()}
    with pytest.raises(TypeError, match="float64"):
        ops.selective_scan(**case)


def test_too_large_a_rank_is_refused():
    case = {k: t.detach() for k, t in problem_2d(side=2, channels=4, dt_rank=5000).items()}
    with pytest.raises(ValueError, match="than a block of this device has for N = 5"):
        ops.selective_scan_2d(**case)
