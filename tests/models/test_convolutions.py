"""Convolutions of sequences, and strided ones in half precision, which libraries get wrong."""

import pytest
import torch
import torch.nn.functional as F

from abilities import HALF_PRECISIONS
from mmvssm.models.layers import ConvDownsample, ConvStem, DepthwiseConv, PatchEmbed, SequenceConv

LAYERS = {
    "depthwise 3": lambda: DepthwiseConv(16, 3, stride=2),
    "depthwise 5": lambda: DepthwiseConv(16, 5, stride=2),
    "depthwise 7": lambda: DepthwiseConv(16, 7, stride=2),
    "downsample 2": lambda: ConvDownsample(16, 32, kernel_size=2),
    "downsample 3": lambda: ConvDownsample(16, 32, kernel_size=3),
    "stem": lambda: ConvStem(3, 32),
    "patches": lambda: PatchEmbed(3, 32, patch_size=4, stride=2),
}


def fill_free_memory_with_nan():
    """Expose reads of uninitialised memory: the next allocations hold NaN."""
    sizes = (256, 1024, 4096, 16384, 65536)
    tensors = [torch.full((size,), torch.nan) for size in sizes for _ in range(8)]
    del tensors


@pytest.mark.parametrize("cast", ["autocast", "model"])
@pytest.mark.parametrize("dtype", HALF_PRECISIONS)
@pytest.mark.parametrize("layer", LAYERS)
def test_half_precision_of_narrow_maps(layer, dtype, cast):
    reference = LAYERS[layer]()
    tested = LAYERS[layer]()
    tested.load_state_dict(reference.state_dict())
    if cast == "model":
        tested.to(dtype)
    image = layer in ("stem", "patches")
    for height, width in [(2, 1), (4, 1), (5, 2), (8, 3), (9, 5)]:
        if layer == "downsample 2":
            height, width = max(height, 2), max(width, 2)
        elif image:
            height, width = height + 4, width + 4
        shape = (2, 3, height, width) if image else (2, height, width, 16)
        x = torch.randn(shape).to(dtype).float()
        weights, results = torch.randn(10_000), []
        for model in (reference, tested):
            model.zero_grad()
            half = model is tested
            fill_free_memory_with_nan()
            with torch.autocast("cpu", dtype, enabled=half and cast == "autocast"):
                y = model(x.to(next(model.parameters()).dtype))
            fill_free_memory_with_nan()
            (y.float().flatten() * weights[: y.numel()]).mean().backward()
            results.append([y.detach(), *(p.grad for p in model.parameters())])
        for got, expected in zip(results[1], results[0]):
            assert (got.float() - expected).norm() <= 0.05 * expected.norm() + 1e-4


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize(("kernel_size", "causal"), [(4, True), (1, True), (3, False), (5, False)])
def test_convolution_of_sequences(kernel_size, causal, length):
    """With and without gradients, it is a sum over shifted sequences."""
    layer = SequenceConv(19, kernel_size, causal)
    exact = SequenceConv(19, kernel_size, causal).double()
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(2, length, 19, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    before = kernel_size - 1 if causal else kernel_size // 2
    padded = F.pad(wide, (0, 0, before, kernel_size - 1 - before))
    parts = (padded[:, t : t + length] * exact.weight[:, 0, t] for t in range(kernel_size))
    expected = sum(parts) + exact.bias

    y = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), y)
    torch.testing.assert_close(y, expected.float())
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    expected.backward(cotangent.double())
    torch.testing.assert_close(x.grad, wide.grad.float())
    for got, wanted in zip(layer.parameters(), exact.parameters()):
        torch.testing.assert_close(got.grad, wanted.grad.float())


def test_compiled_convolution_of_sequences():
    """A training graph has no padding of its own, on which torch 2.11 writes wrong C++ code."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    layer, x = SequenceConv(8, 4, True), torch.randn(2, 7, 8)
    y = torch.compile(layer, backend=keep, fullgraph=True)(x)
    torch.testing.assert_close(y, layer(x))
    (graph,) = graphs
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert any("conv2d" in name for name in names)
    assert not any("pad" in name for name in names)
