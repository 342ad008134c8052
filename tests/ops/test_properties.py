"""Scans of any shape, memory layout, type and route against the float64 definition."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmvssm import ops

BACKENDS = ["torch", *(["cpu"] if "cpu" in ops.built_devices() else [])]
#: Relative L2 errors of outputs and of gradients that rounding explains; inputs are exact.
BOUNDS = {
    torch.float64: (1e-12, 1e-11),
    torch.float32: (5e-6, 5e-5),
    torch.bfloat16: (5e-3, 2e-2),
    torch.float16: (1e-3, 3e-3),
}
LAYOUTS = ("contiguous", "last axis first", "every second", "reversed", "offset")


def lay_out(tensor, layout):
    """Return the same values in another memory layout."""
    if layout == "last axis first":
        return tensor.movedim(-1, 0).contiguous().movedim(0, -1)
    if layout == "every second":
        return tensor.repeat_interleave(2, dim=-1)[..., ::2]
    if layout == "reversed" and tensor.dim() > 1:
        axes = tuple(range(tensor.dim()))
        return tensor.permute(axes[::-1]).contiguous().permute(axes[::-1])
    if layout == "offset":
        flat = torch.cat([tensor.new_zeros(3), tensor.flatten()])
        return flat[3:].view(tensor.shape)
    return tensor


def error(value, expected):
    value, expected = value.detach().double(), expected.detach().double()
    assert value.shape == expected.shape and value.isfinite().all()
    if not expected.numel():
        return 0.0
    scale = expected.norm() + 1e-3 * expected.numel() ** 0.5  # near zero, absolute
    return float((value - expected).norm() / scale)


def compare(run, define, tensors, halves, dtype, backend, layouts):
    """Compare outputs and gradients of ``run`` with those of ``define`` in float64."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    types = {name: dtype if name in halves else wide for name in tensors}
    given_ = {name: t.to(types[name]) for name, t in tensors.items()}
    exact = {name: t.double().clone().requires_grad_() for name, t in given_.items()}
    leaves = {name: t.clone().requires_grad_() for name, t in given_.items()}
    shown = {name: lay_out(t, layout) for (name, t), layout in zip(leaves.items(), layouts)}
    with ops.backend(backend):
        y = run(shown)
    expected = define(exact)
    assert y.dtype == dtype
    output_bound, grad_bound = BOUNDS[dtype]
    assert error(y, expected) < output_bound
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    expected.backward(cotangent.double())
    for name, leaf in leaves.items():
        assert leaf.grad.dtype == types[name]
        assert error(leaf.grad, exact[name].grad) < grad_bound, name


common = dict(
    backend=st.sampled_from(BACKENDS),
    dtype=st.sampled_from(list(BOUNDS)),
    seed=st.integers(0, 2**31),
    batch=st.integers(0, 3),
    d_state=st.integers(1, 20),
    has_D=st.booleans(),
    layouts=st.lists(st.sampled_from(LAYOUTS), min_size=8, max_size=8),
)


@st.composite
def sequences(draw):
    groups = draw(st.integers(1, 4))
    rows = groups * draw(st.integers(1, 20))
    steps = draw(st.sampled_from([g for g in range(1, rows + 1) if rows % g == 0]))
    return groups, rows, steps, draw(st.integers(1, 150))


@st.composite
def tables(draw):
    """Draw pixels, a read table, maybe another write table, and the number of rows written."""
    routes, pixels = draw(st.integers(1, 4)), draw(st.integers(1, 80))
    length = draw(st.integers(1, 140))
    kind = draw(st.sampled_from(["permutation", "any", "one pixel", "zero tokens", "separate"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def table(high):
        return torch.randint(-1, high, (routes, length), generator=generator).int()

    if kind == "permutation":
        read = torch.stack([torch.randperm(pixels, generator=generator) for _ in range(routes)])
        return pixels, read.int(), None, None
    if kind == "one pixel":
        return pixels, torch.full((routes, length), pixels - 1).int(), None, None
    if kind == "zero tokens":
        return pixels, torch.full((routes, length), -1).int(), None, None
    if kind == "separate":
        rows = draw(st.integers(1, 90))
        return pixels, table(pixels), table(rows), rows
    return pixels, table(pixels), None, None


def check_sequence(backend, dtype, seed, batch, d_state, has_D, layouts, sizes, flags):
    groups, rows, steps, length = sizes
    torch.manual_seed(seed)
    normal = torch.randn
    tensors = {
        "u": normal(batch, rows, length),
        "delta": 0.3 * normal(batch, steps, length).abs(),
        "A": -2 * torch.rand(rows, d_state),
        "B": normal(batch, groups, d_state, length),
        "C": normal(batch, groups, d_state, length),
        "delta_bias": 0.3 * torch.rand(steps),
    }
    if has_D:
        tensors["D"] = normal(rows)
    if flags["gate"]:
        tensors["z"] = normal(batch, rows, length)
    softplus = flags["softplus"]

    def run(t):
        return ops.selective_scan(**t, delta_softplus=softplus)

    def define(t):
        t = dict(t)
        z, bias = t.pop("z", None), t.pop("delta_bias")
        t["delta"] = t["delta"].repeat_interleave(rows // steps, 1)
        bias = bias.repeat_interleave(rows // steps)
        y, _ = ops.selective_scan_reference(**t, delta_bias=bias, delta_softplus=softplus)
        return y if z is None else y * torch.nn.functional.silu(z)

    halves = ("u", "delta", "B", "C", "z")
    compare(run, define, tensors, halves, dtype, backend, layouts)


def check_map(backend, dtype, seed, batch, d_state, has_D, layouts, table, flags):
    pixels, read, out, num_out = table
    routes, channels, rank = len(read), flags["channels"], flags["rank"]
    torch.manual_seed(seed)
    normal = torch.randn
    own_maps, shared = flags["own_maps"], flags["shared"]
    tensors = {
        "x": normal(batch, pixels, *([routes] if own_maps else []), channels),
        "x_dbl": normal(batch, pixels, 1 if shared else routes, rank + 2 * d_state),
        "A": -2 * torch.rand(routes * channels, d_state),
        "dt_weight": 0.3 * normal(routes, channels, rank),
        "dt_bias": normal(routes, channels) - 2,
    }
    if has_D:
        tensors["D"] = normal(routes * channels)
    options = dict(routes=read, out_routes=out, num_out=num_out, merge=flags["merge"])
    compare(
        lambda t: ops.selective_scan_2d(**t, **options),
        lambda t: ops.selective_scan_2d_reference(**t, **options),
        tensors,
        ("x", "x_dbl"),
        dtype,
        backend,
        layouts,
    )


EXAMPLES = {"few": 25, "many": 1000}
flags_1d = st.fixed_dictionaries(dict(gate=st.booleans(), softplus=st.booleans()))
flags_2d = st.fixed_dictionaries(
    dict(
        channels=st.integers(1, 35),
        rank=st.integers(1, 5),
        own_maps=st.booleans(),
        shared=st.booleans(),
        merge=st.sampled_from(["sum", "none"]),
    )
)


def examples(number):
    """Run a fixed sequence of examples, which does not depend on the time that they take."""
    return settings(
        max_examples=EXAMPLES[number],
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("number", ["few", pytest.param("many", marks=pytest.mark.slow)])
def test_sequences(number):
    examples(number)(given(**common, sizes=sequences(), flags=flags_1d)(check_sequence))()


@pytest.mark.parametrize("number", ["few", pytest.param("many", marks=pytest.mark.slow)])
def test_maps(number):
    examples(number)(given(**common, table=tables(), flags=flags_2d)(check_map))()
