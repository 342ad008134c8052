"""The 1-D scan: every implementation against the float64 definition."""

import math

import pytest
import torch
from torch.nn import functional as F

from mmvssm import ops

BACKENDS = ["torch", *(["cpu"] if "cpu" in ops.built_devices() else [])]
# batch, groups, channels, d_state, length: around the kernel's vectors (16) and chunks (64)
SHAPES = [
    (2, 4, 3, 3, 130),
    (1, 1, 6, 16, 1),
    (2, 2, 2, 5, 200),
    (1, 4, 1, 1, 3),
    (2, 2, 33, 7, 65),
    (3, 2, 20, 20, 64),
    (1, 1, 17, 4, 63),
    (5, 1, 16, 2, 128),
]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with ops.backend(request.param):
        yield request.param


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32(backend, scan_1d_errors, shape):
    error = scan_1d_errors(*shape)
    assert error.output < 1e-6
    assert error.grad < 1e-5, error.grads


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("has_D", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
def test_options(backend, scan_1d_errors, softplus, has_D, has_bias):
    error = scan_1d_errors(2, 2, 5, 3, 70, softplus=softplus, has_D=has_D, has_bias=has_bias)
    assert error.output < 1e-6
    assert error.grad < 1e-5, error.grads


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_input_float_state(backend, scan_1d_errors, dtype):
    error = scan_1d_errors(2, 2, 19, 4, 100, dtype=dtype)
    assert error.output < 1e-6  # the inputs were rounded beforehand
    assert error.grad < {torch.float16: 1e-3, torch.bfloat16: 5e-3}[dtype], error.grads


@pytest.mark.parametrize("step_scale", [1e-3, 30.0])
def test_extreme_steps(backend, scan_1d_errors, step_scale):
    """Decays within 1e-3 of 1, and decays that underflow to 0."""
    error = scan_1d_errors(1, 2, 8, 4, 300, softplus=False, step_scale=step_scale)
    assert error.output < 2e-6
    assert error.grad < 1e-5, error.grads


def test_float64(backend, scan_1d_errors):
    error = scan_1d_errors(2, 2, 5, 3, 70, dtype=torch.float64)
    assert max(error.output, error.grad) < 1e-13


def test_long_memory_does_not_drift(backend, scan_1d_errors):
    """Thousands of decays near 1 are multiplied up: errors of each must not line up."""
    error = scan_1d_errors(1, 1, 16, 1, 3136, softplus=False, has_bias=False, step_scale=1e-3)
    # the plainest kernels lack fused multiply-adds, and round once more a step
    fused = backend != "cpu" or not ops.info()["cpu instruction set"].startswith("baseline")
    assert error.output < (1e-6 if fused else 2e-6)


def test_definition_by_hand():
    """Two steps of one channel and two states, written out."""
    u, delta = torch.tensor([[[2.0, 3.0]]]), torch.tensor([[[0.5, 0.25]]])
    A, D = torch.tensor([[-1.0, -2.0]]), torch.tensor([10.0])
    B, C = torch.tensor([[[1.0, 4.0], [2.0, 5.0]]]), torch.tensor([[[1.0, 6.0], [3.0, 7.0]]])
    first = [0.5 * 2 * 1, 0.5 * 2 * 2]
    second = [math.exp(-0.25) * first[0] + 0.25 * 3 * 4, math.exp(-0.5) * first[1] + 0.25 * 3 * 5]
    expected = [first[0] + 3 * first[1] + 20, 6 * second[0] + 7 * second[1] + 30]
    for scan in (ops.selective_scan_reference, ops.selective_scan_chunked):
        y, state = scan(u, delta, A, B[:, None], C[:, None], D)
        torch.testing.assert_close(y, torch.tensor([[expected]]))
        torch.testing.assert_close(state, torch.tensor([[second]]))


def test_reference_and_chunked_agree_across_segments():
    tensors = [torch.randn(2, 6, 700), torch.randn(2, 6, 700), -torch.rand(6, 3)]
    tensors += [torch.randn(2, 2, 3, 700), torch.randn(2, 2, 3, 700)]
    tensors = [t.double() for t in tensors]
    for a, b in zip(
        ops.selective_scan_reference(*tensors, delta_softplus=True),
        ops.selective_scan_chunked(*tensors, delta_softplus=True),
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def problem(batch=2, rows=6, groups=2, d_state=3, length=20, dtype=torch.float32):
    u, delta, z = torch.randn(3, batch, rows, length, dtype=dtype)
    B, C = torch.randn(2, batch, groups, d_state, length, dtype=dtype)
    return {
        "u": u,
        "delta": delta,
        "A": -torch.rand(rows, d_state),
        "B": B,
        "C": C,
        "D": torch.randn(rows),
        "z": z,
        "delta_bias": torch.randn(rows),
        "delta_softplus": True,
    }


def test_gate_is_applied_after_the_skip_term(backend):
    case = problem()
    ungated = ops.selective_scan(**{**case, "z": None})
    torch.testing.assert_close(ops.selective_scan(**case), ungated * F.silu(case["z"]))


def test_one_group_may_be_given_without_its_axis(backend):
    case = problem(groups=1)
    expected = ops.selective_scan(**case)
    flat = {**case, "B": case["B"][:, 0], "C": case["C"][:, 0]}
    assert torch.equal(ops.selective_scan(**flat), expected)


def test_rows_may_share_a_delta_row(backend):
    case = problem()
    shared, bias = torch.randn(2, 2, 20, requires_grad=True), torch.randn(2, requires_grad=True)
    y = ops.selective_scan(**{**case, "delta": shared, "delta_bias": bias})
    rows = shared.repeat_interleave(3, 1)
    expected = ops.selective_scan(
        **{**case, "delta": rows, "delta_bias": bias.repeat_interleave(3)}
    )
    assert torch.equal(y, expected)
    y.sum().backward()
    grad, grad_bias = shared.grad.clone(), bias.grad.clone()
    shared.grad = bias.grad = None
    expected.sum().backward()
    torch.testing.assert_close(grad, shared.grad)
    torch.testing.assert_close(grad_bias, bias.grad)


def test_strided_input_gives_the_same_numbers(backend):
    case = problem()
    strided = {
        **case,
        "u": case["u"].transpose(1, 2).contiguous().transpose(1, 2),
        "B": case["B"].flip(-1).flip(-1)[..., :],
        "A": case["A"].t().contiguous().t(),
    }
    assert not strided["u"].is_contiguous()
    assert torch.equal(ops.selective_scan(**strided), ops.selective_scan(**case))


def test_output_dtypes(backend):
    case = problem(dtype=torch.bfloat16)
    assert ops.selective_scan(**case).dtype == torch.bfloat16
    assert ops.selective_scan(**case, out_dtype=torch.float32).dtype == torch.float32


def test_last_state_carries_no_gradient(backend):
    case = problem()
    case["u"].requires_grad_()
    y, state = ops.selective_scan(**case, return_last_state=True)
    assert y.requires_grad and not state.requires_grad


def test_empty_batch(backend):
    y = ops.selective_scan(**problem(batch=0))
    assert y.shape == (0, 6, 20)


def test_nan_is_not_hidden(backend):
    """A NaN in any input reaches the output of its own row, from its step on."""
    for name, index in {"u": (0, 1, 5), "delta": (0, 1, 5), "A": (1, 0)}.items():
        case = {**problem(), "z": None}
        case[name] = case[name].clone()
        case[name][index] = float("nan")
        y = ops.selective_scan(**case)
        assert y[0, 1, 5:].isnan().all(), name
        assert not y[0, 0].isnan().any(), name
