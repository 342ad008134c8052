"""Random scan problems, and their errors against the float64 definition."""

from types import SimpleNamespace

import pytest
import torch

from mmvssm import ops


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def relative(value, expected):
    """Return the relative L2 error."""
    value, expected = value.detach().double().cpu(), expected.detach().double()
    assert value.shape == expected.shape
    return float((value - expected).norm() / expected.norm().clamp_min(1e-30))


def rounded(tensors, names, dtype):
    """Round the activations to ``dtype``, so that only the computation differs."""
    return {
        name: t if t is None or name not in names else t.to(dtype).double()
        for name, t in tensors.items()
    }


def leaves(tensors, names, dtype, device):
    """Return leaf tensors: activations in ``dtype``, parameters in the recurrence's precision."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        name: None
        if t is None
        else t.to(device, dtype if name in names else wide).detach().requires_grad_()
        for name, t in tensors.items()
    }


def errors(run, define, tensors, names, dtype, device):
    """Return the largest relative errors of the outputs and of the gradients of ``run``."""
    tensors = rounded(tensors, names, dtype)
    exact = leaves(tensors, tensors, torch.float64, "cpu")
    tested = leaves(tensors, names, dtype, device)
    expected, outputs = define(exact), run(tested)
    cotangent = normal(*expected[0].shape)
    expected[0].backward(cotangent)
    outputs[0].backward(cotangent.to(device, outputs[0].dtype))
    output = max(relative(a, b) for a, b in zip(outputs, expected))
    grads = {n: relative(tested[n].grad, t.grad) for n, t in exact.items() if t is not None}
    assert all(tested[n].grad.dtype == tested[n].dtype for n in grads)
    return SimpleNamespace(output=output, grad=max(grads.values()), grads=grads)


@pytest.fixture
def scan_1d_errors():
    """Function: errors of ``selective_scan`` on a random problem."""

    def measure(
        batch,
        groups,
        channels,
        d_state,
        length,
        dtype=torch.float32,
        device="cpu",
        softplus=True,
        has_D=True,
        has_bias=True,
        step_scale=1.0,
    ):
        rows = groups * channels
        delta = normal(batch, rows, length) - 1
        tensors = {
            "u": normal(batch, rows, length),
            "delta": step_scale * (delta if softplus else delta.abs()),
            "A": -torch.rand(rows, d_state, dtype=torch.float64) * 3,
            "B": normal(batch, groups, d_state, length),
            "C": normal(batch, groups, d_state, length),
            "D": normal(rows) if has_D else None,
            "delta_bias": 0.5 * normal(rows).abs() if has_bias else None,
        }
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return errors(
            lambda t: ops.selective_scan(
                **t, delta_softplus=softplus, return_last_state=True, out_dtype=wide
            ),
            lambda t: ops.selective_scan_reference(**t, delta_softplus=softplus),
            tensors,
            ("u", "delta", "B", "C"),
            dtype,
            device,
        )

    return measure


@pytest.fixture
def scan_2d_errors():
    """Function: errors of ``selective_scan_2d`` on a random problem.

    ``table`` is 'permutation' (every pixel once a route), 'repeats' (zero tokens and pixels met
    several times) or 'separate' (that, and other rows written than read).
    """

    def measure(
        batch,
        pixels,
        channels,
        routes,
        d_state,
        dt_rank,
        dtype=torch.float32,
        device="cpu",
        table="permutation",
        merge="sum",
        x_per_route=False,
        shared_projection=False,
        has_D=True,
    ):
        out_table, num_out = None, None
        if table == "permutation":
            in_table = torch.stack([torch.randperm(pixels) for _ in range(routes)]).int()
        else:
            in_table = torch.randint(-1, pixels, (routes, pixels + 13)).int()
        if table == "separate":
            num_out = pixels + 3
            out_table = torch.randint(-1, num_out, in_table.shape).int()
        projections = 1 if shared_projection else routes
        tensors = {
            "x": normal(batch, pixels, *([routes] if x_per_route else []), channels),
            "x_dbl": normal(batch, pixels, projections, dt_rank + 2 * d_state),
            "A": -torch.rand(routes * channels, d_state, dtype=torch.float64) * 3,
            "dt_weight": 0.5 * normal(routes, channels, dt_rank),
            "dt_bias": normal(routes, channels) - 2,
            "D": normal(routes * channels) if has_D else None,
        }
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        on_device = {
            "routes": in_table.to(device),
            "out_routes": None if out_table is None else out_table.to(device),
        }
        return errors(
            lambda t: [
                ops.selective_scan_2d(
                    **t, **on_device, num_out=num_out, merge=merge, out_dtype=wide
                )
            ],
            lambda t: [
                ops.selective_scan_2d_reference(
                    **t, routes=in_table, out_routes=out_table, num_out=num_out, merge=merge
                )
            ],
            tensors,
            ("x", "x_dbl"),
            dtype,
            device,
        )

    return measure
