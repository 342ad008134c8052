"""``torch.compile`` of every family: one graph for all sizes, with the results of eager mode.

What a branch, a loop or a remainder does to a graph is seen by Dynamo, whatever compiles the graph
later; the slow tests compile every family to machine code, and capture every form of it.
"""

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import config as inductor_config

from abilities import needs_whole_graphs
from mmvssm import ops
from small_families import FAMILIES, Hierarchical

pytestmark = [needs_whole_graphs, pytest.mark.usefixtures("one_thread")]

#: Batch, height and width; stages of odd sides among them.
SIZES = [(2, 72, 104), (3, 91, 65), (2, 64, 64)]
#: The same for networks whose coarsest maps, halved or cut into windows, would have one row or one
#: column of them above: torch makes a separate graph for a dimension of one.
LARGER_SIZES = [(2, 136, 200), (3, 155, 131), (2, 200, 136)]
ONE_AT_THE_END = (
    *("MSVMamba", "MSVMamba v3", "MambaVision scaled"),
    *("LocalVMamba", "LocalVMamba search", "LocalVim"),
)


def sizes_of(name):
    return LARGER_SIZES if name in ONE_AT_THE_END else SIZES


slow = pytest.mark.slow
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no compiler")


def build(name, **options):
    """Build the smallest network of a family that still has every kind of its layers."""
    family = FAMILIES[name]
    if isinstance(family, Hierarchical):
        options["arch"] = dict(
            depths=(1, 0, 0, 2) if family.type == "MambaVision" else (1, 0, 0, 1)
        )
        if not isinstance(directions := family.options.get("directions", ""), str):
            options["directions"] = directions[:2]
    else:
        options.update(arch=dict(num_layers=1), out_indices=(0,))
    return family.build(drop_path_rate=0.0, **options)


def features(model, images):
    with torch.no_grad():
        return list(model(images))


def half_precision(model, images):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return list(model(images))


def gradients(model, images):
    """Return features of a training step and the gradients of images and parameters."""
    images = images.clone().requires_grad_()
    outputs = model(images)
    # different weights for each channel, as after a norm their plain sum is constant
    loss = sum((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() for out in outputs)
    wanted = [images, *(p for p in model.parameters() if p.requires_grad)]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [*outputs, *(grad for grad in grads if grad is not None)]


def check(model, run, compiler, backend, tolerance=1e-4, sizes=SIZES, dynamic=True):
    """Compare a compiled model with itself at all sizes; return the graphs made up to each."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend(compiler)
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=dynamic)
    graphs = []
    with ops.backend(backend):
        for batch, height, width in sizes:
            images = torch.randn(batch, 3, height, width)
            found, expected = run(compiled, images), run(model, images)
            assert len(found) == len(expected)
            # some gradients are zero up to rounding, such as that of a bias before a norm
            least = 1e-2 * max(b.float().norm() for b in expected)
            for a, b in zip(found, expected):
                assert a.dtype == b.dtype and a.shape == b.shape
                a, b = a.float(), b.float()
                assert (a - b).norm() <= tolerance * b.norm().clamp(min=least)
            graphs.append(counter.frame_count)
    return graphs


FIRST_FORMS = ["VMamba v0", "VMamba crop", "LocalVMamba", "LocalVim middle"]


@pytest.mark.parametrize(
    "name",
    [*FIRST_FORMS, *(pytest.param(n, marks=slow) for n in FAMILIES if n not in FIRST_FORMS)],
)
def test_one_graph_for_all_sizes(name):
    """Odd or even sides or those of the position table, one window or several: no further graph."""
    model = build(name).eval()
    assert check(model, features, "eager", "torch", sizes=sizes_of(name)) == [1, 1, 1]


def test_sizes_are_opened_on_the_way():
    """Without hints: a graph for the first size, one for dynamic sides, one for a dynamic batch."""
    sizes = [(2, 64, 64), (2, 80, 72), (3, 72, 91), (4, 99, 67)]
    model = build("VMamba v0").eval()
    graphs = check(model, features, "eager", "torch", sizes=sizes, dynamic=None)
    assert graphs[0] == 1 and graphs[-1] <= 3


@pytest.mark.parametrize(
    ("name", "backend"),
    [("Vim", "auto"), *(pytest.param(name, "torch", marks=slow) for name in FAMILIES)],
)
def test_training_step(name, backend):
    model, sizes = build(name).train(), sizes_of(name)[:2]
    first, second = check(model, gradients, "aot_eager", backend, sizes=sizes)
    assert first == second


@needs_compiler
def test_machine_code():
    check(build("Vim").eval(), features, "inductor", "torch", sizes=SIZES[:1], dynamic=False)


@slow
@needs_compiler
@pytest.mark.parametrize(
    ("name", "run", "backend"),
    [
        ("VMamba v0", features, "torch"),
        ("VMamba crop", gradients, "auto"),
        ("VMamba", half_precision, "auto"),
        ("EfficientVMamba", features, "auto"),
        ("EfficientVMamba", gradients, "torch"),
        ("MSVMamba", features, "torch"),
        ("MSVMamba v3", gradients, "auto"),
        ("LocalVMamba", features, "auto"),
        ("LocalVMamba search", gradients, "torch"),
        ("MambaVision", features, "torch"),
        ("MambaVision scaled", gradients, "auto"),
        ("Vim", features, "auto"),
        ("Vim", gradients, "auto"),
        ("Vim first release", gradients, "torch"),
        ("Vim", half_precision, "torch"),
        ("LocalVim", features, "torch"),
        ("LocalVim middle", gradients, "auto"),
    ],
)
def test_machine_code_of_every_family(name, run, backend):
    model = build(name).train(run is gradients)
    # bfloat16 is rounded elsewhere
    tolerance = 0.03 if run is half_precision else 1e-4
    # docs/compiling.md, Limits: what torch 2.11 needs to save maps of open sizes
    with inductor_config.patch(layout_optimization=run is not gradients):
        graphs = check(model, run, "inductor", backend, tolerance, sizes_of(name))
    # the kernels save states for the backward pass: none, one or several, by the length
    if run is not gradients or backend == "torch":
        assert graphs[0] == graphs[-1]


@slow
@pytest.mark.parametrize("name", FAMILIES)
def test_recomputed_blocks(name):
    """Gradient checkpointing stays in the graph, and norms count each batch once."""
    model = build(name, with_cp=True).train()
    check(model, gradients, "aot_eager", "torch", sizes=SIZES[:1], dynamic=False)
    counts = {n: b.item() for n, b in model.named_buffers() if n.endswith("num_batches_tracked")}
    # a compiled step and an eager one
    assert set(counts.values()) <= {2}
