"""``torch.ops.mmvssm.*`` as PyTorch's own tools see them."""

import sys
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from abilities import WHOLE_GRAPHS, needs_opcheck, needs_strict, needs_whole_graphs
from mmvssm import ops
from mmvssm.models import Vim, VMamba

pytestmark = pytest.mark.skipif("cpu" not in ops.built_devices(), reason="no compiled kernels")


def tensors_1d(dtype=torch.float32, requires_grad=True, length=7):
    shapes = {"u": (2, 6, length), "delta": (2, 6, length), "A": (6, 3)}
    shapes |= {"B": (2, 2, 3, length), "C": (2, 2, 3, length), "D": (6,), "delta_bias": (6,)}
    tensors = {n: torch.randn(*s, dtype=dtype) for n, s in shapes.items()}
    tensors["A"] = -tensors["A"].abs()
    return {n: t.requires_grad_(requires_grad) for n, t in tensors.items()}


def tensors_2d(dtype=torch.float32, requires_grad=True, d_state=3):
    shapes = {"x": (2, 12, 5), "x_dbl": (2, 12, 4, 2 + 2 * d_state), "A": (20, d_state)}
    shapes |= {"dt_weight": (4, 5, 2), "dt_bias": (4, 5), "D": (20,)}
    tensors = {n: torch.randn(*s, dtype=dtype) for n, s in shapes.items()}
    tensors["A"] = -tensors["A"].abs()
    return {n: t.requires_grad_(requires_grad) for n, t in tensors.items()}


def op_arguments_2d(**kwargs):
    t, table = tensors_2d(**kwargs), ops.routes.cross2d(3, 4)
    before = (t["x"], t["x_dbl"], table, table)
    return (*before, t["A"], t["dt_weight"], t["dt_bias"], t["D"], 12, True)


@needs_opcheck
@pytest.mark.parametrize("twin", ["", "_torch"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad, twin):
    arguments = tuple(tensors_1d(requires_grad=requires_grad).values())
    torch.library.opcheck(getattr(torch.ops.mmvssm, f"selective_scan{twin}"), (*arguments, True))
    arguments = op_arguments_2d(requires_grad=requires_grad)
    torch.library.opcheck(getattr(torch.ops.mmvssm, f"selective_scan_2d{twin}"), arguments)


@needs_opcheck
def test_opcheck_of_the_backward_ops():
    arguments = tuple(tensors_1d(requires_grad=False, length=70).values())
    y, _, states = torch.ops.mmvssm.selective_scan(*arguments, True, None, True)
    torch.library.opcheck(
        torch.ops.mmvssm.selective_scan_backward.default, (y, *arguments, states, True)
    )
    arguments = op_arguments_2d(requires_grad=False)
    y, states = torch.ops.mmvssm.selective_scan_2d(*arguments, None, True)
    torch.library.opcheck(
        torch.ops.mmvssm.selective_scan_2d_backward.default,
        (y, *arguments[:8], states, True),
    )


@pytest.mark.parametrize("d_state", [1, 3])
def test_gradcheck_2d(d_state):
    t = tensors_2d(torch.float64, d_state=d_state)
    # zero tokens, a pixel visited twice, and rows written other than those read
    table = torch.tensor([[0, 5, -1, 5, 11], [3, -1, 2, 1, 0]] * 2).int()
    out = torch.tensor([[0, 1, 2, -1, 3], [4, 0, 0, 1, 2]] * 2).int()

    def run(*values):
        return ops.selective_scan_2d(
            **dict(zip(t, values)), routes=table, out_routes=out, num_out=6
        )

    assert torch.autograd.gradcheck(run, tuple(t.values()))


@pytest.mark.parametrize("softplus", [True, False])
def test_gradcheck_1d(softplus):
    t = tensors_1d(torch.float64)

    def run(*values):
        return ops.selective_scan(**dict(zip(t, values)), delta_softplus=softplus)

    assert torch.autograd.gradcheck(run, tuple(t.values()))


def scan_1d(t, *values):
    return ops.selective_scan(**dict(zip(t, values)), delta_softplus=True)


def scan_2d(t, *values, **options):
    # zero tokens, and a pixel visited twice
    table = torch.tensor([[0, 5, -1, 5, 11], [3, -1, 2, 1, 0]] * 2).int()
    return ops.selective_scan_2d(**dict(zip(t, values)), routes=table, **options)


@pytest.mark.parametrize("merge", ["sum", "none"])
def test_second_derivatives_2d(merge):
    t = tensors_2d(torch.float64)
    run = partial(scan_2d, t, merge=merge)
    assert torch.autograd.gradgradcheck(run, tuple(t.values()), fast_mode=True)


@pytest.mark.parametrize("segment", [256, 3])  # one and several, which are recomputed
def test_second_derivatives_1d(monkeypatch, segment):
    monkeypatch.setattr("mmvssm.ops.reference.SEGMENT", segment)
    t = tensors_1d(torch.float64, length=5)
    assert torch.autograd.gradgradcheck(partial(scan_1d, t), tuple(t.values()), fast_mode=True)


def test_gradients_to_differentiate_are_those_of_the_kernels():
    """Also where one tensor is given twice."""
    t = tensors_1d(torch.float64)
    t["C"] = t["B"]
    leaves = [t[name] for name in ("u", "delta", "A", "B", "D", "delta_bias")]
    cotangent = torch.randn(2, 6, 7, dtype=torch.float64)
    grads, expected = (
        torch.autograd.grad(scan_1d(t, *t.values()), leaves, cotangent, create_graph=create_graph)
        for create_graph in (True, False)
    )
    torch.testing.assert_close(grads, expected)
    assert all(grad.requires_grad for grad in grads)


def penalty(model, image):
    """Return the gradient of a gradient penalty with respect to all parameters."""
    image.requires_grad_()
    total = sum(out.square().mean() for out in model(image))
    (grad,) = torch.autograd.grad(total, image, create_graph=True)
    return torch.autograd.grad(grad.square().sum(), list(model.parameters()), allow_unused=True)


@pytest.mark.parametrize(
    "build",
    [
        lambda: VMamba(dict(embed_dims=8, depths=(1,), mixer=dict(d_state=2)), out_indices=(0,)),
        lambda: Vim(dict(embed_dims=8, num_layers=1, patch_size=8), img_size=16),
    ],
    ids=["VMamba", "Vim"],
)
def test_gradient_penalty_of_a_network(build):
    model, image = build().double().eval(), torch.randn(1, 3, 16, 16, dtype=torch.float64)
    with ops.backend("torch"):
        expected = penalty(model, image)
    for grad, wanted in zip(penalty(model, image), expected):
        assert (grad is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(grad, wanted)


@pytest.mark.filterwarnings("ignore:mmvssm runs its slower PyTorch scan")
@pytest.mark.parametrize(
    ("scan", "tensors", "batched"),
    [(scan_1d, tensors_1d, "u delta B C"), (scan_2d, tensors_2d, "x x_dbl")],
)
def test_torch_func(scan, tensors, batched):
    t = tensors(torch.float64, requires_grad=False)
    values, batched = tuple(t.values()), batched.split()
    axes = tuple(0 if name in batched else None for name in t)

    def one(*sample):
        return scan(t, *(v[None] if n in batched else v for n, v in zip(t, sample))).squeeze(0)

    expected = scan(t, *values)
    torch.testing.assert_close(torch.func.vmap(one, axes)(*values), expected)

    def loss(*sample):
        return one(*sample).square().sum()

    # gradients of each image, of the activations and of A, which all images share
    wanted = (0, list(t).index("A"))
    each = torch.func.vmap(torch.func.grad(loss, wanted), axes)(*values)
    leaves = [v.clone().requires_grad_() for v in values]
    scan(t, *leaves).square().sum().backward()
    torch.testing.assert_close(each[0], leaves[0].grad)
    torch.testing.assert_close(each[1].sum(0), leaves[wanted[1]].grad)

    # one output, of the first image, by each input of it
    sample = [v[0] if name in batched else v for name, v in t.items()]

    def first(part):
        return one(part, *sample[1:]).flatten()[:3]

    jacobian = torch.autograd.functional.jacobian(first, sample[0])
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(first)(sample[0]), jacobian)
    hessian = torch.autograd.functional.hessian(lambda part: first(part).square().sum(), sample[0])
    torch.testing.assert_close(
        torch.func.hessian(lambda part: first(part).square().sum())(sample[0]), hessian
    )
    direction = torch.randn_like(sample[0])
    expected = torch.einsum("i...,...->i", jacobian, direction)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(sample[0], direction)
        tangent = torch.autograd.forward_ad.unpack_dual(first(dual)).tangent
    torch.testing.assert_close(tangent, expected)


@pytest.mark.filterwarnings("ignore:mmvssm runs its slower PyTorch scan")
def test_per_sample_gradients_of_a_network():
    arch = dict(embed_dims=8, depths=(1,), mixer=dict(d_state=2))
    model = VMamba(arch, out_indices=(0,)).double().eval()
    parameters, images = dict(model.named_parameters()), torch.randn(3, 3, 16, 16).double()

    def loss(parameters, image):
        return torch.func.functional_call(model, parameters, (image[None],))[0].square().mean()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, images)
    for i, image in enumerate(images):
        model.zero_grad()
        model(image[None])[0].square().mean().backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(each[name][i], parameter.grad)


def test_transforms_need_the_definition():
    t = tensors_1d(torch.float64, requires_grad=False)
    message = "backend 'cpu' was chosen, but only the PyTorch scan supports torch.func"
    with ops.backend("cpu"), pytest.raises(RuntimeError, match=message):
        torch.func.grad(lambda u: ops.selective_scan(**{**t, "u": u}).sum())(t["u"])
    with pytest.warns(UserWarning, match="only the PyTorch scan supports torch.func"):
        sys.modules[ops.backend.__module__]._warned.clear()
        torch.func.grad(lambda u: ops.selective_scan(**{**t, "u": u}).sum())(t["u"])


def test_runs_inside_a_checkpoint():
    """Gradient checkpointing returns what it recomputed only once."""
    from torch.utils.checkpoint import checkpoint

    t = tensors_1d(length=70)

    def run(*values):
        return ops.selective_scan(**dict(zip(t, values)), delta_softplus=True)

    expected = torch.autograd.grad(run(*t.values()).sum(), list(t.values()))
    y = checkpoint(run, *t.values(), use_reentrant=False)
    for grad, wanted in zip(torch.autograd.grad(y.sum(), list(t.values())), expected):
        assert torch.equal(grad, wanted)


def test_compiles_without_graph_breaks():
    t = tensors_2d()

    def run(x, x_dbl):
        rest = {n: t[n] for n in ("A", "dt_weight", "dt_bias", "D")}
        return ops.selective_scan_2d(x, x_dbl, ops.routes.cross2d(3, 4), **rest).square().sum()

    expected = torch.autograd.grad(run(t["x"], t["x_dbl"]), list(t.values()))
    compiled = torch.compile(run, fullgraph=WHOLE_GRAPHS, backend="aot_eager")
    grads = torch.autograd.grad(compiled(t["x"], t["x_dbl"]), list(t.values()))
    for grad, wanted in zip(grads, expected):
        torch.testing.assert_close(grad, wanted)


@needs_whole_graphs
def test_pytorch_scan_is_one_node_for_any_length():
    """Its loops would be unrolled, for one length."""
    nodes = []

    def compiler(graph, _):
        nodes.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    def run(t):
        return ops.selective_scan(**t, delta_softplus=True)

    compiled = torch.compile(run, fullgraph=True, backend=compiler, dynamic=True)
    with ops.backend("torch"):
        for length in (7, 300):
            t = tensors_1d(length=length)
            expected = torch.autograd.grad(run(t).square().sum(), list(t.values()))
            found = torch.autograd.grad(compiled(t).square().sum(), list(t.values()))
            for grad, wanted in zip(found, expected):
                torch.testing.assert_close(grad, wanted)
    assert [names.count("mmvssm.selective_scan_torch") for names in nodes] == [1]


@needs_strict
@needs_whole_graphs
def test_exported_pytorch_scan_is_pytorch_alone():
    """Programs for use without mmvssm contain none of our ops, however they are traced."""

    class Scan(torch.nn.Module):
        def forward(self, t):
            return ops.selective_scan(**t)

    t = tensors_1d(requires_grad=False)
    for strict in (False, True):
        with ops.backend("torch"):
            program = torch.export.export(Scan(), (t,), strict=strict)
            expected = Scan()(t)
        assert "mmvssm" not in str(program.graph)
        torch.testing.assert_close(program.module()(t), expected)


def test_shapes_without_data():
    t = {n: v.to("meta") for n, v in tensors_2d(torch.bfloat16).items()}
    y = ops.selective_scan_2d(
        **t, routes=torch.empty(4, 12, dtype=torch.int32, device="meta"), merge="none", num_out=7
    )
    assert y.is_meta and y.shape == (2, 7, 4, 5) and y.dtype == torch.bfloat16


def test_autocast_keeps_what_it_is_given():
    """Autocast neither narrows the scan's inputs nor its parameters."""
    t, table = tensors_2d(), ops.routes.cross2d(3, 4)
    expected = ops.selective_scan_2d(**t, routes=table)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.selective_scan_2d(**t, routes=table), expected)
        mixed = {**t, "x_dbl": t["x_dbl"].bfloat16()}
        assert ops.selective_scan_2d(**mixed, routes=table).dtype == torch.float32
        arguments = list(op_arguments_2d())
        arguments[1] = arguments[1].bfloat16()
        assert torch.ops.mmvssm.selective_scan_2d(*arguments)[0].dtype == torch.float32


def test_flops_follow_the_papers_formula():
    t = tensors_1d(requires_grad=False)
    with FlopCounterMode(display=False) as counter:
        ops.selective_scan(**t, delta_softplus=True)
    assert counter.get_total_flops() == 2 * 6 * 7 * (9 * 3 + 1)
    with FlopCounterMode(display=False) as counter:
        ops.selective_scan_2d(**tensors_2d(requires_grad=False), routes=ops.routes.cross2d(3, 4))
    projection = 2 * 2 * 12 * 4 * 5 * 2  # two per multiply-add
    assert counter.get_total_flops() == 2 * 20 * 12 * (9 * 3 + 1) + projection


@pytest.mark.parametrize("merge", [True, False])
def test_twins_lay_out_results_as_graphs_expect(merge):
    """Zero tokens, batches and a map smaller than what is scanned: strides as without data."""
    args = [
        torch.randn(2, 7, 3),
        torch.randn(2, 7, 2, 6),
        torch.randint(-1, 7, (2, 9), dtype=torch.int32),
        torch.randint(-1, 7, (2, 9), dtype=torch.int32),
        -torch.rand(6, 2),
        torch.randn(2, 3, 2),
        torch.randn(2, 3),
        torch.randn(6),
    ]
    op = torch.ops.mmvssm.selective_scan_2d_torch
    found, _ = op(*args, 7, merge)
    expected, _ = op(*(t.to("meta") for t in args), 7, merge)
    assert found.shape == expected.shape and found.stride() == expected.stride()
