"""Facts about route tables do not change the results of the kernels."""

import re
from pathlib import Path

import pytest
import torch

from abilities import needs_opcheck
from mmvssm import ops
from mmvssm.ops.route_facts import RouteFacts

HEADER = Path(__file__).parents[2] / "ops" / "csrc" / "common" / "scan_common.h"

native = pytest.mark.skipif("cpu" not in ops.built_devices(), reason="no compiled kernels")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(
                torch.cuda.is_available() and "cuda" not in ops.built_devices(),
                reason="there is a CUDA device, but mmvssm was built without CUDA kernels",
            ),
        ],
    ),
]


def test_values_are_those_of_the_native_code():
    text = HEADER.read_text()
    body = re.search(r"enum RouteFacts : int64_t \{(.*?)\};", text, re.DOTALL)[1]
    native_values = {name: int(v) for name, v in re.findall(r"k(\w+) = (\d+)", body)}
    assert native_values == {f.name.title().replace("_", ""): f.value for f in RouteFacts}


def visits(table, size):
    """Return how often each route visits each entry: (K, size)."""
    counts = torch.zeros(table.shape[0], size + 1, dtype=torch.long)
    index = torch.where(table < 0, size, table).long()
    return counts.scatter_add_(1, index, torch.ones_like(index))[:, :size]


def true_facts(routes, out_routes, pixels, num_out):
    read, written = visits(routes, pixels), visits(out_routes, num_out)
    one_table = torch.equal(routes, out_routes)
    found = {
        RouteFacts.CHECKED: True,
        RouteFacts.READ_REPEATS: (read > 1).any(),
        RouteFacts.READ_GAPS: (read == 0).any(),
        RouteFacts.OUT_REPEATS: (written > 1).any(),
        RouteFacts.OUT_GAPS: (written == 0).any(),
        RouteFacts.DISJOINT: one_table and ((read > 0).sum(0) <= 1).all(),
        RouteFacts.UNION_GAPS: (written.sum(0) == 0).any(),
    }
    return sum((fact for fact, holds in found.items() if holds), RouteFacts(0))


def permutations(pixels, routes=4):
    return torch.stack([torch.randperm(pixels) for _ in range(routes)]).int()


def dealt_out(pixels, routes=4):
    """Return disjoint routes that visit every pixel except the last few."""
    share = pixels // routes
    return torch.randperm(pixels)[: share * routes].view(routes, share).int()


def with_holes(table):
    return torch.where(torch.rand(table.shape) < 0.2, -1, table).int()


def repeated(table):
    """Return each route twice, in another order the second time."""
    return torch.cat([table, table.flip(1)], 1).contiguous()


# pixels, table read, table written and output rows if they differ
TABLES = {
    "permutations": lambda: (60, permutations(60)),
    "one route": lambda: (60, permutations(60, 1)),
    "parts of the map": lambda: (90, permutations(90)[:, :70].contiguous()),
    "holes": lambda: (90, with_holes(permutations(90))),
    "repeats": lambda: (60, repeated(permutations(60))),
    "repeats and holes": lambda: (70, torch.randint(-1, 70, (4, 130)).int()),
    "one route, repeats": lambda: (40, repeated(permutations(40, 1))),
    "disjoint": lambda: (280, dealt_out(280)),
    "disjoint, the rest unvisited": lambda: (283, dealt_out(283)),
    "disjoint, holes": lambda: (280, with_holes(dealt_out(280))),
    "disjoint, repeats": lambda: (120, repeated(dealt_out(120))),
    "atrous": lambda: (99, ops.routes.atrous(9, 11)),
    "other rows written": lambda: (60, permutations(60), permutations(60), 60),
    "other rows, a part": lambda: (60, permutations(60), permutations(80)[:, :60], 80),
    "repeated, written apart": lambda: (
        30,
        permutations(30).repeat(1, 2),
        permutations(60),
        60,
    ),
}
FORMS = [
    {},
    {"shared": True},
    {"x_per_route": True},
    {"merge": False},
    {"x_per_route": True, "shared": True, "merge": False},
]


def problem(table, form, dtype=torch.float32, d_state=3, channels=37, batch=2, device="cpu"):
    """Return positional arguments of the op, and the true facts about its tables."""
    pixels, routes, *apart = TABLES[table]()
    out_routes, num_out = apart or (routes, pixels)
    out_routes = out_routes.contiguous()
    form = {"shared": False, "x_per_route": False, "merge": True, **form}
    count, dt_rank = routes.shape[0], 2
    x = torch.randn(batch, pixels, *([count] if form["x_per_route"] else []), channels)
    width = dt_rank + 2 * d_state
    x_dbl = torch.randn(batch, pixels, 1 if form["shared"] else count, width)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    parameters = (
        -3 * torch.rand(count * channels, d_state),
        torch.randn(count, channels, dt_rank),
        torch.randn(count, channels) - 2,
        torch.randn(count * channels),
    )
    x, x_dbl = (t.to(device, dtype).requires_grad_() for t in (x, x_dbl))
    parameters = (t.to(device, wide).requires_grad_() for t in parameters)
    arguments = (x, x_dbl, routes.to(device), out_routes.to(device), *parameters)
    facts = true_facts(routes, out_routes, pixels, num_out)
    return (*arguments, num_out, form["merge"]), facts


@pytest.fixture
def poisoned_memory():
    """New memory holds NaN (torch >= 2.2)."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def run(arguments, facts):
    """Return the output and all gradients."""
    leaves = [t for t in arguments if isinstance(t, torch.Tensor) and t.requires_grad]
    y, _ = torch.ops.mmvssm.selective_scan_2d(*arguments, route_facts=int(facts))
    weights = torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, weights)]


@native
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("table", TABLES)
def test_facts_change_no_result(poisoned_memory, table, form, device):
    arguments, facts = problem(table, form, device=device)
    for one, two in zip(run(arguments, 0), run(arguments, facts), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)


@native
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("table", ["holes", "disjoint", "disjoint, the rest unvisited"])
@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"d_state": 20}], ids=str)
def test_facts_in_other_types_and_sizes(poisoned_memory, table, options, device):
    arguments, facts = problem(table, {"shared": True}, device=device, **options)
    bound = 1e-5 if options.get("dtype") is None else 2e-2
    for one, two in zip(run(arguments, 0), run(arguments, facts), strict=True):
        assert (two.float() - one.float()).norm() <= bound * one.float().norm()


@native
def test_disjoint_routes_in_float64_against_the_definition(poisoned_memory):
    arguments, facts = problem("disjoint, the rest unvisited", {}, torch.float64)
    y, *grads = run(arguments, facts)
    x, x_dbl, routes, _, *parameters, _, _ = arguments
    expected = ops.selective_scan_2d_reference(x, x_dbl, routes, *parameters)
    torch.testing.assert_close(y, expected.detach())
    weights = torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype)
    wanted = torch.autograd.grad(expected, [x, x_dbl, *parameters], weights)
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, want)


@native
@pytest.mark.parametrize("table", ["repeats", "disjoint", "disjoint, holes"])
def test_runs_with_facts_are_bit_identical(table):
    arguments, facts = problem(table, {"shared": True}, channels=130, batch=1)
    for one, two in zip(run(arguments, facts), run(arguments, facts), strict=True):
        assert torch.equal(one, two)


@native
@pytest.mark.parametrize("facts", [RouteFacts(0), RouteFacts.DISJOINT, RouteFacts.READ_GAPS])
@pytest.mark.parametrize("entry", [-2, 60])
def test_unchecked_tables_are_checked_on_every_call(facts, entry):
    arguments, _ = problem("permutations", {})
    y, states = torch.ops.mmvssm.selective_scan_2d(*arguments, None, True)
    for place in (2, 3):
        bad = list(arguments)
        bad[place] = arguments[place].clone()
        bad[place][1, 2] = entry
        with pytest.raises(ValueError, match="must hold entries from -1 to 59"):
            torch.ops.mmvssm.selective_scan_2d(*bad, route_facts=int(facts))
        with pytest.raises(ValueError, match="must hold entries from -1 to 59"):
            torch.ops.mmvssm.selective_scan_2d_backward(
                y, *bad[:8], states, True, route_facts=int(facts)
            )


@native
@needs_opcheck
def test_opcheck_with_facts():
    arguments, facts = problem("disjoint", {"shared": True}, channels=5)
    torch.library.opcheck(
        torch.ops.mmvssm.selective_scan_2d.default, arguments, {"route_facts": int(facts)}
    )


@native
def test_compiles_with_facts():
    arguments, facts = problem("disjoint", {"shared": True}, channels=5)

    def scan(x):
        y, _ = torch.ops.mmvssm.selective_scan_2d(x, *arguments[1:], route_facts=int(facts))
        return y.square().sum()

    (expected,) = torch.autograd.grad(scan(arguments[0]), arguments[:1])
    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    (grad,) = torch.autograd.grad(compiled(arguments[0]), arguments[:1])
    torch.testing.assert_close(grad, expected)


@pytest.mark.gpu
@pytest.mark.skipif("cuda" not in ops.built_devices(), reason="no CUDA kernels")
def test_capture_needs_no_call_before_it():
    """With facts nothing synchronizes with the device, not even the first call on a table."""
    arguments, facts = problem("permutations", {}, device="cuda")
    arguments = [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments]
    other, _ = problem("permutations", {}, device="cuda")
    torch.ops.mmvssm.selective_scan_2d(*other)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, _ = torch.ops.mmvssm.selective_scan_2d(*arguments, route_facts=int(facts))
    graph.replay()
    torch.testing.assert_close(y, torch.ops.mmvssm.selective_scan_2d(*arguments)[0])
