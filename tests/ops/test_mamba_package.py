"""The test matrix of the Mamba package's own scan: https://github.com/state-spaces/mamba.

The sizes, flags and tolerances are that test's; the expected values are the definition's.
"""

import itertools

import pytest
import torch
from torch.nn import functional as F

from mmvssm import ops

BATCH, ROWS, D_STATE = 2, 4, 8
LENGTHS = (8, 16, 32, 64, 128, 256, 372, 512, 784, 1024, 1134, 2048, 4096)
#: rtol and atol of the output and of gradients of activations; for those of parameters 1e-3.
TOLERANCES = {
    torch.float32: (6e-4, 2e-3),
    torch.float16: (3e-3, 5e-3),
    torch.bfloat16: (3e-2, 5e-2),
}


def problem(dtype, length, groups, variable_B, variable_C, has_z, has_D, has_bias):
    """Return random arguments, with parameters in float32."""

    def maps(variable):
        if not variable:
            return torch.randn(ROWS, D_STATE)
        grouped = (groups,) if groups > 1 else ()
        return torch.randn(BATCH, *grouped, D_STATE, length, dtype=dtype)

    return {
        "u": torch.randn(BATCH, ROWS, length, dtype=dtype),
        "delta": 0.5 * torch.rand(BATCH, ROWS, length, dtype=dtype),
        "A": -0.5 * torch.rand(ROWS, D_STATE),
        "B": maps(variable_B),
        "C": maps(variable_C),
        "D": torch.randn(ROWS) if has_D else None,
        "z": torch.randn(BATCH, ROWS, length, dtype=dtype) if has_z else None,
        "delta_bias": 0.5 * torch.rand(ROWS) if has_bias else None,
    }


def define(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    """Return the Mamba package's function in float32, rounded at the end, and the last state."""

    def rows(maps):
        maps = maps.float()  # first, so that gradients of a group are not summed in half precision
        if maps.dim() == 2:
            return maps[None, :, :, None].expand(BATCH, -1, -1, u.shape[2])
        maps = maps if maps.dim() == 4 else maps[:, None]
        return maps.repeat_interleave(ROWS // maps.shape[1], dim=1)

    wide = [None if t is None else t.float() for t in (u, delta, A, rows(B), rows(C), D)]
    y, state = ops.selective_scan_reference(*wide, delta_bias, delta_softplus)
    y = y if z is None else y * F.silu(z.float())
    return y.to(u.dtype), state


def check(dtype, length, groups, variable_B, variable_C, has_z, softplus, has_D, has_bias):
    tensors = problem(dtype, length, groups, variable_B, variable_C, has_z, has_D, has_bias)
    ours, theirs = (
        {n: None if t is None else t.clone().requires_grad_() for n, t in tensors.items()}
        for _ in range(2)
    )
    y, state = ops.selective_scan(**ours, delta_softplus=softplus, return_last_state=True)
    expected, expected_state = define(**theirs, delta_softplus=softplus)
    rtol, atol = TOLERANCES[dtype]
    close = torch.testing.assert_close
    close(y, expected, rtol=rtol, atol=atol)
    close(state, expected_state, rtol=rtol, atol=atol)
    alone = ops.selective_scan(**tensors, delta_softplus=softplus)
    assert y.dtype == dtype and torch.equal(alone, y)

    cotangent = torch.randn_like(expected)
    y.backward(cotangent)
    expected.backward(cotangent)
    weights = (max(1e-3, rtol) if has_z else 1e-3, 1e-3)
    variable = (rtol, atol)
    tolerances = {
        "u": (2 * rtol, 2 * atol),
        "delta": (5 * rtol, 10 * atol),
        "A": (weights[0], 5 * weights[1]),
        "B": variable if variable_B else weights,
        "C": variable if variable_C else weights,
        "D": weights,
        "z": weights,
        "delta_bias": weights,
    }
    for name, (rtol, atol) in tolerances.items():
        if tensors[name] is not None:
            grad, wanted = ours[name].grad, theirs[name].grad
            assert grad.dtype == tensors[name].dtype
            close(grad, wanted, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


FLAGS = list(itertools.product([False, True], repeat=4))  # z, softplus, D, bias


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("length", [8, 100])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_short_sequences(dtype, length, groups):
    for flags in FLAGS:
        check(dtype, length, groups, True, True, *flags)
    for variable in ((False, True), (True, False), (False, False)):
        check(dtype, length, groups, *variable, True, True, True, True)
        check(dtype, length, groups, *variable, False, True, True, True)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_whole_matrix(dtype, length, groups):
    for variable in itertools.product([True, False], repeat=2):
        # for constant maps, all flags for short sequences only
        for flags in FLAGS if all(variable) or length <= 128 else FLAGS[-4:]:
            check(dtype, length, groups, *variable, *flags)


def test_constant_maps_keep_their_precision():
    """B and C given as parameters are not rounded to the activations' half precision."""
    tensors = problem(torch.bfloat16, 40, 1, False, False, False, True, True)
    y = ops.selective_scan(**tensors, delta_softplus=True, out_dtype=torch.float32)
    exact = {n: None if t is None else t.double() for n, t in tensors.items()}
    expected = ops.selective_scan(**exact, delta_softplus=True)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(B=torch.zeros(3, 8)), r"B must have shape \(K\*D, N\) = \(4, 8\), got \(3, 8\)"),
        (dict(C=torch.zeros(4, 7)), r"C must have shape \(K\*D, N\) = \(4, 8\), got \(4, 7\)"),
        (dict(C=torch.zeros(8)), r"C must have 2 or 4 dimensions, got shape \(8,\)"),
        (dict(B=torch.zeros(4, 8).int()), "B must be a float tensor, got torch.int32"),
        (dict(A=torch.zeros(4, 8).cfloat()), "A must be a float tensor, got torch.complex64"),
        (
            dict(B=torch.zeros(2, 2, 8, 16), C=torch.zeros(2, 1, 8, 16)),
            r"C must have shape \(Bt, K, N, L\) = \(2, 2, 8, 16\), got \(2, 1, 8, 16\)",
        ),
        (
            dict(B=torch.zeros(4, 8), C=torch.zeros(2, 3, 8, 16)),
            "C must have a number of groups that divides the 4 rows of u, got 3",
        ),
    ],
)
def test_wrong_maps(change, message):
    tensors = problem(torch.float32, 16, 2, True, True, True, True, True)
    with pytest.raises((TypeError, ValueError), match=message):
        ops.selective_scan(**{**tensors, **change})
