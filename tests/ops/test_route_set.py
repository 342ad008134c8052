"""Facts and derived tables of route sets, and the scan that relies on them."""

import pytest
import torch

from mmvssm import ops
from mmvssm.ops.route_facts import RouteFacts
from mmvssm.ops.route_set import IN_RANGE, RouteSet

F = RouteFacts


def int32(*rows):
    return torch.tensor(rows, dtype=torch.int32)


@pytest.mark.parametrize(
    ("read", "out", "facts"),
    [
        (int32([0, 1, 2], [2, 1, 0]), None, F.CHECKED),
        (int32([0, 2], [1, -1]), None, F.CHECKED | F.DISJOINT | F.READ_GAPS | F.OUT_GAPS),
        (int32([0, 1, 2]), None, F.CHECKED | F.DISJOINT),
        (
            int32([0, 0], [1, -1]),
            None,
            F.CHECKED
            | F.DISJOINT
            | F.UNION_GAPS
            | F.READ_REPEATS
            | F.OUT_REPEATS
            | F.READ_GAPS
            | F.OUT_GAPS,
        ),
        # each pixel is read by one route, but both write the same row
        (
            int32([0, 1], [2, -1]),
            int32([0, 1], [0, 2]),
            F.CHECKED | F.READ_GAPS | F.OUT_GAPS,
        ),
        (
            int32([0, 1, 2]),
            int32([0, 0, 1]),
            F.CHECKED | F.OUT_REPEATS | F.OUT_GAPS | F.UNION_GAPS,
        ),
    ],
)
def test_facts(read, out, facts):
    found = RouteSet(read, out, num_pixels=3)
    assert RouteFacts(found.facts) == facts
    assert found.has_zero_tokens == bool((read < 0).any())
    assert found.is_disjoint == bool(facts & F.DISJOINT)
    assert found.to("meta").facts == found.facts


def test_facts_with_other_output_rows():
    found = RouteSet(int32([0, 1]), int32([0, 3]), num_pixels=2, num_out=4)
    assert RouteFacts(found.facts) == F.CHECKED | F.OUT_GAPS | F.UNION_GAPS
    assert (found.num_pixels, found.num_out, found.num_routes, found.length) == (2, 4, 1, 2)


@pytest.mark.parametrize(
    ("tables", "options", "error", "message"),
    [
        ((torch.zeros(1, 2),), {}, TypeError, "routes must be an int32 table, got torch.float32"),
        ((int32([0, 4]),), {"num_pixels": 4}, ValueError, "routes must hold.*-1 to 3.*0 to 4"),
        ((int32([0, -2]),), {}, ValueError, "routes must hold.*-2"),
        ((int32([0]), int32([0, 1])), {}, ValueError, "out_routes must have shape"),
        ((int32([0]), int32([1])), {}, ValueError, "out_routes must hold entries from -1 to 0"),
        (
            (int32([0]),),
            {"num_out": 0},
            ValueError,
            "num_out must be a whole number.*got 0",
        ),
        ((torch.zeros(0, 2).int(),), {}, ValueError, "K must be at least 1, got 0"),
    ],
)
def test_tables_that_are_no_routes(tables, options, error, message):
    with pytest.raises(error, match=message):
        RouteSet(*tables, **options)


TABLES = {
    "all pixels": int32([0, 1, 2, 3], [3, 1, 0, 2]),
    "zero tokens": int32([0, -1, 2, 3], [-1, 1, 0, -1]),
    "repeats": int32([0, 0, 2, 0], [1, 1, 1, 3]),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_gather(table):
    x = torch.randn(2, 4, 3)
    got = RouteSet(table, num_pixels=4).gather(x)
    for k, route in enumerate(table.tolist()):
        for step, pixel in enumerate(route):
            expected = x[:, pixel] if pixel >= 0 else torch.zeros(2, 3)
            assert torch.equal(got[:, step, k], expected)


def test_by_written_row():
    found = RouteSet(int32([0, 1, 2], [2, 1, 0]), int32([1, 0, -1], [0, 1, 2]), num_pixels=3)
    assert found.by_written_row.read.tolist() == [[1, 0, -1], [2, 1, 0]]


@pytest.mark.parametrize("num_pixels", [4, 6])
def test_project_once(num_pixels):
    """Each pixel takes the weights of its own route; pixels of no route give zeros."""
    found = RouteSet(int32([0, 3, -1], [2, -1, 1]), num_pixels=num_pixels)
    x, weight = torch.randn(2, num_pixels, 5), torch.randn(2, 3, 5)
    got = found.project_once(x, weight)
    for pixel, k in {0: 0, 3: 0, 1: 1, 2: 1}.items():
        torch.testing.assert_close(got[:, pixel], x[:, pixel] @ weight[k].T)
    assert not got[:, 4:].any()


def arguments(table, pixels, merge="sum", d_state=2):
    num_routes, channels, rank = len(table), 5, 2
    torch.manual_seed(1)
    t = dict(
        x=torch.randn(2, pixels, channels),
        x_dbl=torch.randn(2, pixels, num_routes, rank + 2 * d_state),
        A=-torch.rand(num_routes * channels, d_state),
        dt_weight=torch.randn(num_routes, channels, rank),
        dt_bias=torch.randn(num_routes, channels),
        D=torch.randn(num_routes * channels),
    )
    return {name: value.requires_grad_() for name, value in t.items()}


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("merge", ["sum", "none"])
@pytest.mark.parametrize(
    "table",
    [*TABLES.values(), int32([0, 2, -1], [3, -1, 1]), int32([0, 2, 0])],
    ids=[*TABLES, "disjoint", "one route"],
)
def test_scan_along_a_set_is_that_along_its_table(table, merge, backend):
    """Whatever the kernels make of the facts, results and gradients stay the same."""
    pixels = 6  # two of them are on no route
    t = arguments(table, pixels)
    results = []
    for routes in (RouteSet(table, num_pixels=pixels), table):
        with ops.backend(backend):
            y = ops.selective_scan_2d(**t, routes=routes, merge=merge)
        weight = torch.linspace(-1, 1, y.numel()).view(y.shape)
        results.append((y, *torch.autograd.grad((y * weight).sum(), list(t.values()))))
    reference = ops.selective_scan_2d_reference(
        **{name: value.double() for name, value in t.items()}, routes=table, merge=merge
    )
    torch.testing.assert_close(results[0][0].double(), reference, rtol=1e-5, atol=1e-5)
    for got, expected in zip(*results):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_what_does_not_go_with_a_set():
    table = TABLES["all pixels"]
    t = arguments(table, 4)
    found = RouteSet(table, num_pixels=4)
    with pytest.raises(ValueError, match="must be None if routes is a RouteSet"):
        ops.selective_scan_2d(**t, routes=found, num_out=4)
    with pytest.raises(ValueError, match=r"routes must be over the 4 pixels of x, got .* over 5"):
        ops.selective_scan_2d(**t, routes=RouteSet(table, num_pixels=5))


def test_nothing_is_looked_at_again(monkeypatch):
    """A set is checked on construction; a call neither reads nor copies its tables."""
    found = RouteSet(TABLES["zero tokens"], num_pixels=4)
    t = arguments(found.read, 4)
    for name in ("aminmax", "max", "contiguous", "clone", "expand"):
        monkeypatch.setattr(torch.Tensor, name, refuse_int32(getattr(torch.Tensor, name)))
    ops.selective_scan_2d(**t, routes=found)
    with pytest.raises(AssertionError, match="looked at"):
        ops.selective_scan_2d(**t, routes=found.read)


def refuse_int32(method):
    def call(tensor, *args, **kwargs):
        result = method(tensor, *args, **kwargs)
        copied = isinstance(result, torch.Tensor) and result.data_ptr() == tensor.data_ptr()
        assert tensor.dtype != torch.int32 or copied, "a table was looked at"
        return result

    return call


def test_entries_of_traced_tables_are_forced_into_range():
    traced = RouteSet.traced(int32([0, 9], [-5, 1]), num_pixels=3)
    assert traced.read.tolist() == [[0, 2], [-1, 1]]
    assert traced.facts == IN_RANGE and not traced.is_disjoint
    assert RouteSet.traced(int32([0]), num_pixels=1, disjoint=True).is_disjoint


def test_joined_sets_write_where_the_routes_do():
    found = RouteSet(int32([0, 1], [1, -1]), int32([1, 0], [-1, 2]), num_pixels=2, num_out=3)
    assert found.joined.read.tolist() == [[0, 1, 1, -1]]
    assert found.joined.out.tolist() == [[1, 0, -1, 2]] and found.joined.num_out == 3
    assert found.joined_apart.out.tolist() == [[1, 0, -1, 5]] and found.joined_apart.num_out == 6


def test_rows_that_are_written_twice_have_no_pixel_of_their_own():
    with pytest.raises(ValueError, match="writes an output row twice"):
        RouteSet(int32([0, 1]), int32([0, 0]), num_pixels=2).by_written_row.read.tolist()


def test_views_are_copied_once():
    line = torch.arange(3, dtype=torch.int32)
    found = RouteSet(line.expand(2, -1), line.flip(0).expand(2, -1))
    assert found.read.is_contiguous() and found.out.is_contiguous()
