"""The merge of gated routes: every implementation against the float64 definition."""

import pytest
import torch
import torch.nn.functional as F

from abilities import needs_opcheck
from mmvssm import ops
from mmvssm.ops.merging import gated_sum, normalized_means

BACKENDS = ["torch", *(["cpu"] if "cpu" in ops.built_devices() else [])]
# batch, pixels, routes, channels: blocks of 64 pixels, vectors of 16 channels
SHAPES = [(2, 35, 4, 33), (1, 1, 1, 3), (3, 129, 2, 96), (2, 64, 8, 16), (1, 130, 3, 5)]
EPS = 1e-5


@pytest.fixture(params=BACKENDS)
def backend(request):
    with ops.backend(request.param):
        yield request.param


def problem(shape, dtype=torch.float32, mean=3.0):
    batch, pixels, routes, channels = shape
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "x": (mean + 2 * torch.randn(shape, dtype=torch.float64)).to(dtype),
        "scale": torch.randn(batch, pixels, channels).to(dtype),
        "gates": torch.rand(batch, routes, channels).to(wide),
        "weight": torch.randn(channels).to(wide),
        "bias": torch.randn(channels).to(wide),
    }


def define(x, gates, weight, bias, scale=None):
    product = x if scale is None else x * scale[:, :, None]
    mean = product.mean(3, keepdim=True)
    variance = (product - mean).square().mean(3, keepdim=True)
    means = ((product - mean) / (variance + EPS).sqrt()).mean(1) * weight + bias
    return means, (product * gates[:, None]).sum(2)


def run(x, gates, weight, bias, scale=None):
    return normalized_means(x, weight, bias, scale, eps=EPS), gated_sum(x, gates, scale)


def differentiate(function, tensors, dtype=None):
    """Return outputs and gradients by name."""
    leaves = {n: t.to(dtype or t.dtype).detach().requires_grad_() for n, t in tensors.items()}
    outputs = dict(zip(("means", "sum"), function(**leaves)))
    generator = torch.Generator().manual_seed(0)
    cotangents = [
        torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
        for y in outputs.values()
    ]
    torch.autograd.backward(list(outputs.values()), cotangents)
    assert all(leaf.grad.dtype == leaf.dtype for leaf in leaves.values())
    return {**outputs, **{name: leaf.grad for name, leaf in leaves.items()}}


def compare(tensors, bound, rounded=None):
    """``rounded``: bound of the gradients that are rounded to the dtype of ``x``."""
    results = differentiate(run, tensors)
    for name, expected in differentiate(define, tensors, torch.float64).items():
        assert results[name].shape == expected.shape
        limit = rounded if rounded and name in ("x", "scale") else bound
        error = (results[name].double() - expected).norm() / expected.norm()
        assert error < limit, (name, float(error))


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32(backend, shape, scaled):
    tensors = problem(shape)
    # torch's layer norm sums the gradient of its bias in long chains
    bound = 1e-5 if backend == "torch" else 2e-6
    compare(tensors if scaled else without(tensors, "scale"), bound)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_input_float_sums(backend, dtype, scaled):
    tensors = problem((2, 70, 3, 32), dtype)
    rounded = {torch.float16: 1e-3, torch.bfloat16: 5e-3}[dtype]
    compare(tensors if scaled else without(tensors, "scale"), 2e-6, rounded)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64(backend, shape):
    compare(problem(shape, torch.float64), 1e-11)


def test_a_mean_far_from_zero_costs_no_precision(backend):
    tensors = problem((1, 70, 2, 40), mean=1000.0)
    compare(without(tensors, "scale"), 1e-4)


def test_other_memory_layouts(backend):
    tensors = problem((2, 35, 4, 16))
    expected = run(**tensors)
    strided = {
        name: t.transpose(0, -1).contiguous().transpose(0, -1) for name, t in tensors.items()
    }
    assert not strided["x"].is_contiguous()
    torch.testing.assert_close(run(**strided), expected)


def test_a_scale_of_another_dtype(backend):
    """As the gate of a mixer under autocast."""
    tensors = problem((2, 35, 4, 16))
    tensors["scale"] = tensors["scale"].bfloat16()
    expected = run(**{**tensors, "scale": tensors["scale"].float()})
    results = run(**tensors)
    assert all(y.dtype == torch.float32 for y in results)
    torch.testing.assert_close(results, expected)


def test_means_are_those_of_a_layer_norm(backend):
    t = problem((2, 35, 4, 16))
    product = t["x"] * t["scale"][:, :, None]
    expected = F.layer_norm(product, (16,), t["weight"], t["bias"], EPS).mean(1)
    means = normalized_means(t["x"], t["weight"], t["bias"], t["scale"], eps=EPS)
    torch.testing.assert_close(means, expected)


@pytest.mark.parametrize("scaled", [True, False])
def test_gradients_and_second_derivatives(backend, scaled):
    tensors = problem((2, 3, 2, 4), torch.float64)
    names = list(tensors if scaled else without(tensors, "scale"))
    values = tuple(tensors[name].requires_grad_() for name in names)
    assert torch.autograd.gradcheck(lambda *v: run(**dict(zip(names, v))), values)
    assert torch.autograd.gradgradcheck(
        lambda *v: run(**dict(zip(names, v))), values, fast_mode=True
    )


@pytest.mark.filterwarnings("ignore:mmvssm runs its slower PyTorch scan")
def test_transforms(backend):
    """``torch.func`` runs the PyTorch definition, also where kernels are the default."""
    t = problem((2, 3, 2, 4), torch.float64)

    def total(x):
        return sum(y.square().sum() for y in run(**{**t, "x": x}))

    with ops.backend("torch" if backend == "torch" else "auto"):
        expected = torch.autograd.functional.jacobian(total, t["x"])
        torch.testing.assert_close(torch.func.grad(total)(t["x"]), expected)


@needs_opcheck
@pytest.mark.skipif("cpu" not in ops.built_devices(), reason="no compiled kernels")
@pytest.mark.parametrize("scaled", [True, False])
def test_opcheck(scaled):
    t = problem((2, 5, 3, 7))
    x, gates = t["x"].requires_grad_(), t["gates"].requires_grad_()
    scale = t["scale"].requires_grad_() if scaled else None
    means = torch.ops.mmvssm.normalized_means
    torch.library.opcheck(means, (x, scale, EPS))
    torch.library.opcheck(torch.ops.mmvssm.gated_sum, (x, gates, scale))
    x, gates, scale = (None if v is None else v.detach() for v in (x, gates, scale))
    dy, dmeans = t["scale"].detach(), gates
    torch.library.opcheck(
        torch.ops.mmvssm.normalized_means_backward.default, (dmeans, x, scale, EPS)
    )
    torch.library.opcheck(torch.ops.mmvssm.gated_sum_backward.default, (dy, x, gates, scale))


BAD = {
    "x is no tensor": ({"x": [1.0]}, TypeError, "x must be a torch.Tensor, got list"),
    "rank of x": ({"x": torch.randn(2, 6, 4)}, ValueError, "x must have 4 dimensions"),
    "integer x": ({"x": torch.ones(2, 5, 3, 7).long()}, TypeError, "x must be one of float32"),
    "no pixels": ({"x": torch.randn(2, 0, 3, 7)}, ValueError, "P must be at least 1"),
    "no channels": ({"x": torch.randn(2, 5, 3, 0)}, ValueError, "D must be at least 1"),
    "shape of scale": ({"scale": torch.randn(2, 5, 6)}, ValueError, r"scale.*\(2, 5, 7\).*6\)"),
    "integer scale": ({"scale": torch.ones(2, 5, 7).long()}, TypeError, "scale must be a float"),
    "shape of gates": ({"gates": torch.randn(2, 2, 7)}, ValueError, r"gates.*\(2, 3, 7\)"),
    "device of gates": ({"gates": torch.randn(2, 3, 7, device="meta")}, ValueError, "gates must"),
    "shape of weight": ({"weight": torch.randn(6)}, ValueError, r"weight.*\(7,\), got \(6,\)"),
    "bias is no tensor": ({"bias": None}, TypeError, "bias must be a torch.Tensor"),
}


@pytest.mark.parametrize(("changed", "error", "message"), BAD.values(), ids=BAD)
def test_errors(backend, changed, error, message):
    with pytest.raises(error, match=message):
        run(**{**problem((2, 5, 3, 7)), **changed})
