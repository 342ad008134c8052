"""Influence maps are the gradients of the scans, for every family."""

from contextlib import contextmanager

import pytest
import torch

from mmvssm.analysis import KINDS, draw_influence, influence, record_scans
from mmvssm.analysis.routes import scanning_block
from mmvssm.models import MambaVision, MSVMamba, Vim, VMamba
from mmvssm.models.layers import CheckpointedBlock, SelectiveScans
from mmvssm.ops import selective_scan_2d
from mmvssm.ops.routes import route_set


def scanning_layers(backbone):
    blocks = [part for part in backbone.modules() if isinstance(part, CheckpointedBlock)]
    return [
        i for i, block in enumerate(blocks)
        if any(isinstance(part, SelectiveScans) for part in block.modules())
    ]  # fmt: skip


@contextmanager
def scans_of(mixer):
    """Return each scan's input, and its output for it by route, all other inputs being fixed."""
    calls, run = [], mixer.run_scan

    def keep(x, routes, *, merge="sum", param_sets=slice(None)):
        x_in, *others, _ = mixer.scan_inputs(x, routes, param_sets)
        x_in = x_in.detach().double().requires_grad_(True)
        others = [part.detach().double() for part in others]
        with torch.enable_grad():
            y = selective_scan_2d(x_in, others[0], routes, *others[1:], merge="none")
        calls.append((x_in, routes, y))
        return run(x, routes, merge=merge, param_sets=param_sets)

    mixer.run_scan = keep
    yield calls
    del mixer.run_scan


def check_against_gradients(backbone, layer, image):
    _, mixer = scanning_block(backbone, layer)
    context = {}
    handle = mixer.register_forward_pre_hook(lambda module, args: context.update(args=args))
    with torch.no_grad(), scans_of(mixer) as calls:
        backbone(image)
    handle.remove()
    x, *grid = context["args"]
    size, positions = grid or (tuple(x.shape[1:3]), ())
    found = record_scans(backbone, layer, image)
    for b in {0, len(found.routes) - 1}:
        routes = iter(found.routes[b])
        for x_in, table, y in calls:
            for k in range(table.num_routes):
                route = next(routes)
                num_pixels = route.size[0] * route.size[1]
                tokens = list(range(num_pixels))
                for t, position in enumerate(positions):
                    tokens.insert(position, num_pixels + t)
                order = torch.tensor(tokens)
                read = torch.arange(len(order))
                if x_in.dim() == 4:  # inputs in the order of the steps
                    steps = route_set(mixer.scan, *size, cls_positions=tuple(positions)).read[k]
                    read = steps.long()
                for place in {0, num_pixels // 2, route.num_places - 1}:
                    at = order.repeat(y.shape[1] // len(order)) == place
                    target = y[b, at, k].sum() / y.shape[-1]
                    (gradient,) = torch.autograd.grad(target, x_in, retain_graph=True)
                    gradient = gradient[b, :, k] if x_in.dim() == 4 else gradient[b]
                    values = gradient.sum(-1)[read >= 0]
                    expected = torch.zeros(route.num_places, dtype=torch.float64)
                    expected.index_add_(0, order[read[read >= 0]], values)
                    row = route.row(place)
                    atol = 1e-9 * expected.abs().max().item()
                    assert torch.allclose(row, expected, rtol=1e-6, atol=atol)
                    # a position that the route does not visit is influenced by none
                    assert (route.written == place).any() or not row.any()
        assert next(routes, None) is None
    return found


def test_influence_is_the_gradient(demo):
    backbone = demo()
    layers = scanning_layers(backbone)
    for layer in {layers[0], layers[-1]}:
        check_against_gradients(backbone, layer, torch.randn(1, 3, 40, 56))


@pytest.mark.parametrize("place", ["head", "middle", "double"])
def test_class_tokens_have_influence(place):
    arch = dict(embed_dims=16, num_layers=2, patch_size=8)
    backbone = Vim(arch, cls_token=place, img_size=32).eval()
    image = torch.randn(1, 3, 24, 40)
    check_against_gradients(backbone, 1, image)
    found = influence(backbone, image, 1, (0.5, 0.5))
    count = 2 if place == "double" else 1
    assert found.merged.query == (1, 2) and len(found.merged.cls_values) == count
    assert all(value != 0 for value in found.merged.cls_values)
    of_token = influence(backbone, image, 1, 0)
    assert of_token.merged.query is None
    # forwards and backwards along the sequence, every patch influences the token
    assert of_token.merged.values.count_nonzero() == 15
    draw_influence(of_token).canvas.draw()


def test_windows_hear_of_themselves():
    arch = dict(embed_dims=8, depths=(1, 1, 2, 1), num_heads=(2, 2), stem_dims=8)
    backbone = MambaVision(dict(arch, window_sizes=(3, 7)), out_indices=(3,)).eval()
    # a map of 5x7 pixels in 2x3 windows of 3x3
    image = torch.randn(1, 3, 80, 112)
    found = check_against_gradients(backbone, 2, image)
    assert found.size == (5, 7) and len(found.routes) == 6 and found.window_size == 3
    seen = influence(backbone, image, 2, (0.7, 0.5)).merged
    assert seen.query == (3, 3) and seen.values.shape == (5, 7)
    # the first pixel of its window comes first in the scan
    assert seen.values.nonzero().tolist() == [[3, 3]]
    seen = influence(backbone, image, 2, (0.99, 0.5)).merged
    assert seen.query == (4, 3)
    assert seen.values.nonzero().tolist() == [[3, 3], [3, 4], [3, 5], [4, 3]]


def test_smaller_maps_are_resized():
    backbone = MSVMamba(dict(embed_dims=16, depths=(1,)), out_indices=(0,)).eval()
    found = influence(backbone, torch.randn(1, 3, 28, 40), 0, (0.5, 0.99))
    assert [tuple(part.values.shape) for part in found.routes] == [(7, 10), (4, 5)]
    assert [part.query for part in found.routes] == [(3, 9), (1, 4)]
    assert found.merged.values.shape == (7, 10) and found.merged.query == (3, 9)
    draw_influence(found, "title", torch.zeros(28, 40, 3, dtype=torch.uint8)).canvas.draw()


def test_kinds():
    """With one state, what remains is below one, and the product of the parts of the steps."""
    backbone = VMamba(dict(embed_dims=16, depths=(1,)), out_indices=(0,)).eval()
    image = torch.randn(1, 3, 24, 32)
    found = {kind: influence(backbone, image, 0, (0.5, 0.5), kind) for kind in KINDS}
    rows = {kind: result.routes[0].values.flatten() for kind, result in found.items()}
    row, column = found["decay"].merged.query
    query = row * 8 + column
    for values in rows.values():  # along the rows nothing flows backwards
        assert values[: query + 1].all() and not values[query + 1 :].any()
    decay = rows["decay"][: query + 1]
    assert decay[-1] == 1 and (decay.diff() > 0).all()
    assert torch.allclose(rows["decayed"], rows["activation"] * rows["decay"])
    total = sum(part.values for part in found["influence"].routes)
    assert torch.equal(found["influence"].merged.values, total)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(kind="attention"), "kind must be one of influence, activation, decayed, decay"),
        (dict(query=(0.5, 1.5)), "query must be two fractions from 0 to 1"),
        (dict(query=0), "query must be below 0, the number of class tokens, got 0"),
        (dict(layer=1), "layer must be from 0 to 0, got 1"),
        (dict(image=torch.zeros(2, 3, 32, 32)), r"image must have shape \(1, C, H, W\)"),
    ],
)
def test_refuses(change, message):
    backbone = VMamba(dict(embed_dims=8, depths=(1, 1)), out_indices=(0,)).eval()
    with pytest.raises(ValueError, match=message):
        influence(**{
            **dict(backbone=backbone, image=torch.zeros(1, 3, 32, 32), layer=0, query=(0, 0)),
            **change,
        })  # fmt: skip


def test_cascades_are_refused():
    arch = dict(embed_dims=8, depths=(1,), mixer=dict(type="CascadeSS2D"))
    backbone = VMamba(arch, out_indices=(0,)).eval()
    with pytest.raises(ValueError, match="layer 0 scans the output of another scan"):
        influence(backbone, torch.zeros(1, 3, 32, 32), 0, (0, 0))
    assert "run_scan" not in vars(scanning_block(backbone, 0)[1])
