"""The PyTorch path under the rules of Apple's GPUs (see ``mps_rules.py``)."""

from functools import partial

import pytest
import torch

from mmvssm.ops import RouteSet, backend, routes, selective_scan, selective_scan_2d
from mmvssm.ops.reference import selective_scan_2d_reference, selective_scan_reference
from mps_rules import LikeMPS

K, D, N, R = 4, 6, 2, 3
TABLES = {
    "cross2d": routes.cross2d,
    "atrous": routes.atrous,
    "directions": partial(routes.directions, names=("h", "v", "w2", "w2_flip")),
}
REFUSED = {
    "float64": (lambda x: x.double(), "no float64"),
    "int32 index": (lambda x: x[torch.zeros(2, dtype=torch.int32)], "takes int64 indices"),
    "int32 index of a sum": (
        lambda x: x.index_put_((torch.zeros(2, dtype=torch.int32),), x[:2], accumulate=True),
        "takes int64 indices",
    ),
    "missing op": (lambda x: torch.linalg.eigvals(x), "no kernel for Apple's GPUs"),
}


def random(*shape):
    return torch.randn(*shape).requires_grad_()


@pytest.mark.parametrize("call, message", REFUSED.values(), ids=REFUSED.keys())
def test_rules_refuse(call, message):
    x = torch.eye(4)
    with pytest.raises((TypeError, NotImplementedError), match=message), LikeMPS():
        call(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scan_of_sequences(dtype):
    u, delta, z = (random(2, K * D, 300).to(dtype) for _ in range(3))
    B, C = (random(2, K, N, 300).to(dtype) for _ in range(2))
    A, skip, bias = -random(K * D, N).exp(), random(K * D), random(K * D)
    with backend("torch"), LikeMPS():
        y, last_state = selective_scan(u, delta, A, B, C, skip, z, bias, True, True)
        y.float().square().mean().backward()
    assert y.isfinite().all() and last_state.isfinite().all()


@pytest.mark.parametrize("merge", ["sum", "none"])
@pytest.mark.parametrize("name", TABLES)
def test_scan_along_routes(name, merge):
    with backend("torch"), LikeMPS() as rules:
        # made on the device, as from a user's own table
        table = RouteSet(TABLES[name](5, 7), num_pixels=35)
        x, x_dbl = random(2, 35, D), random(2, 35, K, R + 2 * N)
        A, weight, bias = -random(K * D, N).exp(), random(K, D, R), random(K, D)
        y = selective_scan_2d(x, x_dbl, table, A, weight, bias, merge=merge)
        read = table.gather(x).mean() + table.by_written_row.gather(x).mean()
        (y.square().mean() + read).backward()
    assert "index_put" in rules.seen and x.grad.isfinite().all()


def test_devices_without_autocast():
    """``torch.autocast`` knows no ``mps`` before torch 2.5, and no ``meta`` at all."""
    shapes = (2, 35, D), (2, 35, K, R + 2 * N), (K * D, N), (K, D, R), (K, D)
    x, x_dbl, A, weight, bias = (torch.empty(*shape, device="meta") for shape in shapes)
    table = routes.cross2d(5, 7).to("meta")
    y = selective_scan_2d_reference(x, x_dbl, table, A, weight, bias, scan=selective_scan_reference)
    assert y.shape == (2, 35, D)
