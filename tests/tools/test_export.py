"""tools/export.py: exported files compute what the model does, at other sizes as well."""

import subprocess
import sys
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.apis import init_detector
from mmengine.utils import digit_version
from mmpretrain.apis import get_model
from mmseg.apis import init_model
from torch import nn

from mmvssm import models, ops
from mmvssm.engine import export
from mmvssm.ops.backend import registered_ops

TOOL = Path(__file__).resolve().parents[2] / "tools" / "export.py"
CONFIGS = Path(__file__).parent / "configs"
LACKING = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version(export.LEAST_TORCH),
    reason=f"exporting needs torch {export.LEAST_TORCH}",
)
needs_onnx = pytest.mark.skipif(
    bool(LACKING), reason=f"requirements/export.txt is not installed: no {', '.join(LACKING)}"
)
#: Size of a single scan, large enough for ONNX Runtime to use several threads.
CHANNELS = 32
STAGES = dict(arch=dict(embed_dims=16, depths=(1, 1)), out_indices=(0, 1))
MERGED = dict(arch=dict(STAGES["arch"], stem="patch", downsample="patch_merge"), out_indices=(0, 1))
LAYERS = dict(arch=dict(embed_dims=32, num_layers=1))
HALVES = dict(embed_dims=16, depths=(0, 0, 2), num_heads=(2,), window_sizes=(14,))
#: Every family, in both forms of odd sizes where it has two.
BACKBONES = [
    ("VMamba", dict(STAGES)),
    ("VMamba", dict(MERGED, odd_size="pad")),  # as v0
    ("VMamba", dict(MERGED, odd_size="crop")),
    ("EfficientVMamba", dict(STAGES, odd_size="pad")),
    ("EfficientVMamba", dict(STAGES, odd_size="crop")),
    ("MSVMamba", dict(STAGES)),
    ("LocalVMamba", dict(STAGES)),
    ("MambaVision", dict(arch=HALVES, out_indices=(2,))),
    ("Vim", dict(LAYERS, odd_size="crop")),
    ("Vim", dict(LAYERS, odd_size="pad")),
    ("LocalVim", dict(LAYERS, odd_size="crop")),
    ("LocalVim", dict(LAYERS, odd_size="pad")),
]


class Scan(nn.Module):
    """Scan whose tables are inputs, so that no size is known on export."""

    def __init__(self, routes, merge, is_apart, is_shared, has_skip):
        super().__init__()
        torch.manual_seed(0)
        self.routes, self.merge = routes, merge
        self.is_apart, self.is_shared = is_apart, is_shared
        self.A = nn.Parameter(-torch.rand(routes * CHANNELS, 2) - 0.1)
        self.weight = nn.Parameter(torch.randn(routes, CHANNELS, 2))
        self.bias = nn.Parameter(torch.randn(routes, CHANNELS))
        self.D = nn.Parameter(torch.randn(routes * CHANNELS)) if has_skip else None

    def inputs(self, batch, pixels, length, rows):
        torch.manual_seed(length)
        middle = (self.routes,) if self.is_apart else ()
        projections = 1 if self.is_shared else self.routes
        return (
            torch.randn(batch, pixels, *middle, CHANNELS),
            torch.randn(batch, pixels, projections, 6),
            torch.randint(-1, pixels, (self.routes, length), dtype=torch.int32),
            torch.randint(-1, rows, (self.routes, length), dtype=torch.int32),
        )

    def forward(self, x, x_dbl, read, out):
        return ops.selective_scan_2d(
            x, x_dbl, read, self.A, self.weight, self.bias, self.D,
            out_routes=out, num_out=11, merge=self.merge,
        )  # fmt: skip


@needs_onnx
@pytest.mark.parametrize(
    ("routes", "merge", "is_apart", "is_shared", "has_skip"),
    [(2, "sum", False, False, True), (3, "none", True, True, False), (1, "sum", True, False, True)],
)
def test_scan_of_standard_operators(routes, merge, is_apart, is_shared, has_skip, tmp_path):
    """Zero tokens, repeated visits, separate output rows; lengths from one step to thousands."""
    import onnx
    import onnxruntime

    scan = Scan(routes, merge, is_apart, is_shared, has_skip)
    open_ = torch.export.Dim.DYNAMIC
    first = {0: open_(min=1), 1: open_(min=1)}
    shapes = (first, first, {1: open_(min=1)}, {1: open_(min=1)})
    with torch.no_grad(), registered_ops():
        program = torch.export.export(scan, scan.inputs(2, 7, 30, 11), dynamic_shapes=shapes)
    path = tmp_path / "scan.onnx"
    export.write_onnx(program, ["result"], path)
    used = {node.domain for node in onnx.load(path).graph.node}
    assert used <= {"", "ai.onnx", "mmvssm"}
    session = onnxruntime.InferenceSession(str(path))
    names = [value.name for value in session.get_inputs()]
    exact = deepcopy(scan).double()
    for batch, pixels, length in ((1, 5, 1), (3, 9, 17), (2, 40, 3000)):
        inputs = scan.inputs(batch, pixels, length, 11)
        with torch.no_grad(), ops.backend("torch"):
            expected = exact(*(t.double() if t.is_floating_point() else t for t in inputs))
        (y,) = session.run(None, {n: t.numpy() for n, t in zip(names, inputs)})
        np.testing.assert_allclose(y, expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Configs of small models, and random weights for them."""
    folder = tmp_path_factory.mktemp("export")
    thin = "dict(arch=dict(depths=(1, 1)), out_indices={})"
    small = f"backbone={thin.format((1,))}, head=dict(in_channels=16)"
    maps = f"backbone={thin.format((0, 1))}"
    neck = "neck=dict(in_channels=[8, 16], num_outs=3)"
    retina = (
        f"_delete_=True, type='RetinaNet', {maps[:-1]}, type='mmvssm.VMamba'),"
        " data_preprocessor=dict(type='DetDataPreprocessor', mean=[120] * 3, std=[60] * 3,"
        " bgr_to_rgb=True),"
        " neck=dict(type='FPN', in_channels=[8, 16], out_channels=16, num_outs=3,"
        " add_extra_convs='on_input'),"
        " bbox_head=dict(type='RetinaHead', num_classes=3, in_channels=16, feat_channels=16,"
        " stacked_convs=1, anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4,"
        " scales_per_octave=3, ratios=[1.0], strides=[4, 8, 16]))"
    ).replace("depths=(1, 1)", "embed_dims=8, depths=(1, 1)")
    heads = (
        "decode_head=dict(in_channels=[8, 16], in_index=[0, 1]),"
        " auxiliary_head=dict(in_channels=16, in_index=1)"
    )
    changes = {
        "small": ("cls", small, get_model),
        "det": ("det", f"{maps}, {neck}", init_detector),
        "retina": ("det", retina, init_detector),
        "seg": ("seg", f"{maps}, {heads}", init_model),
    }
    for name, (base, change, make) in changes.items():
        (folder / f"{name}.py").write_text(
            f"_base_ = {str(CONFIGS / f'{base}.py')!r}\nmodel = dict({change})\n"
        )
        torch.manual_seed(0)
        model = make(str(folder / f"{name}.py"), None, device="cpu")
        torch.save(dict(meta={}, state_dict=model.state_dict()), folder / f"{name}.pth")
    return folder


@pytest.fixture
def run_export(run_here, place):
    def run(name, *arguments):
        return run_here(TOOL, place / f"{name}.py", place / f"{name}.pth", *arguments)

    return run


def scores_of(place, name, image):
    """Return the classifier's logits of pixels, normalised here."""
    model = get_model(str(place / f"{name}.py"), str(place / f"{name}.pth"), device="cpu").eval()
    with torch.no_grad():
        return model((image - 128) / 64)


@needs_onnx
def test_classifier_of_any_size(run_export, place):
    import onnxruntime

    status, said, _ = run_export("small", "-o", "model.onnx")
    assert status == 0 and "images of any size" in said and "differs by" in said
    session = onnxruntime.InferenceSession("model.onnx")
    for shape in ((1, 3, 32, 32), (5, 3, 97, 64)):
        image = torch.rand(shape) * 255
        (logits,) = session.run(["logits"], {"image": image.numpy()})
        expected = scores_of(place, "small", image)
        np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-4)


def test_program_of_torch_export(run_export, place):
    status, said, _ = run_export("small", "-o", "model.pt2", "--shape", "64", "96")
    assert status == 0 and "images of 64x96" in said
    program = torch.export.load("model.pt2").module()
    image = torch.rand(3, 3, 64, 96) * 255
    expected = scores_of(place, "small", image)
    torch.testing.assert_close(program(image)[0], expected, rtol=0, atol=1e-5)
    with pytest.raises(Exception, match=r"(?i)shape|guard|expected"):
        program(torch.rand(1, 3, 96, 96))


def test_class_tokens_leave_batch_and_size_open():
    """The position of the token, and tables of the model's own grid, are part of the graph."""
    model = models.Vim(dict(embed_dims=32, num_layers=1), out_type="cls_token").eval()
    program = _opened(model).module()
    with torch.no_grad():
        for size in ((160, 256), (224, 224)):
            image = torch.rand(3, 3, *size)
            torch.testing.assert_close(program(image), model(image), rtol=0, atol=1e-5)
        traced = torch.jit.trace(model, torch.rand(1, 3, 64, 64))
        image = torch.rand(2, 3, 64, 64)
        torch.testing.assert_close(traced(image), model(image), rtol=0, atol=1e-5)


def _opened(model):
    plan = export.Plan((256, 320), True, ())
    return export.trace(model, plan)


def test_graphs_have_the_scans_where_no_kernel_is_built(monkeypatch):
    model = models.Vim(dict(embed_dims=32, num_layers=1)).eval()
    monkeypatch.setattr(sys.modules["mmvssm.ops.backend"], "built_devices", lambda: ())
    program = _opened(model)
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count("mmvssm.selective_scan_2d.default") == 1


def test_refusals(run_export, place, monkeypatch):
    assert run_export("small", "-o", "model.pb")[0] == 2
    assert run_export("small", "-o", "model.pt2", "--shape", "8", "8")[0] == 2
    assert run_export("small", "-o", "model.onnx", "--aot")[0] == 2
    assert "there is no folder 'away'" in run_export("small", "-o", "away/model.pt2")[0]
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert run_export("small", "-o", "model.onnx")[0] == (
        "export.py: error: .onnx files need onnx, onnxscript:"
        " pip install -r requirements/export.txt"
    )
    monkeypatch.setattr(export, "LEAST_TORCH", "99.0")
    assert "exporting needs torch 99.0 or later, this is torch" in run_export(
        "small", "-o", "model.pt2"
    )[0]  # fmt: skip


def test_packages_need_kernels_and_a_compiler(run_export, place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
        said = run_export("small", "-o", "model.pt2", "--aot")[0]
        assert "--aot needs a C++ compiler" in said
    monkeypatch.setattr(export, "built_devices", lambda: ())
    assert ".pt2 files hold the package's own op" in run_export("small", "-o", "model.pt2")[0]


@pytest.mark.parametrize(
    ("library", "part"), [("mmseg", "decode_head"), ("mmdet", "bbox_head"), ("mmdet", "rpn_head")]
)
def test_heads_that_take_more_than_maps_are_refused(library, part):
    class Head(nn.Module):
        def forward(self, maps, batch_data_samples):
            raise AssertionError("must not run")

    model = nn.Module()
    setattr(model, part, Head())
    with pytest.raises(
        SystemExit, match=r"Head cannot be exported|only a dense head can be exported, got Head"
    ):
        export.plan_export(model, library, None)


def test_saved_traces_load_in_a_new_process(tmp_path, environment):
    """After ``import mmvssm``, in batches of any size, class token included."""
    for name, model in (
        ("stages", models.VMamba(**STAGES)),
        ("tokens", models.Vim(**LAYERS, out_type="cls_token")),
    ):
        model.eval()
        with torch.no_grad():
            trace = torch.jit.trace(model, torch.rand(1, 3, 64, 96))
            image = torch.rand(3, 3, 64, 96)
            torch.jit.save(trace, tmp_path / f"{name}.pt")
            torch.save((image, model(image)), tmp_path / f"{name}.data")
    code = """
import torch, mmvssm
for name in ("stages", "tokens"):
    image, expected = torch.load(f"{name}.data")
    torch.testing.assert_close(torch.jit.load(f"{name}.pt")(image), expected, rtol=0, atol=1e-5)
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


@pytest.mark.slow
def test_compiled_package(run_export, place):
    status, said, _ = run_export("small", "-o", "model.pt2", "--aot")
    assert status == 0 and "images of any size" in said and "differs by" in said
    run = torch._inductor.aoti_load_package("model.pt2")
    for shape in ((1, 3, 32, 32), (5, 3, 97, 64)):
        image = torch.rand(shape) * 255
        expected = scores_of(place, "small", image)
        torch.testing.assert_close(run(image)[0], expected, rtol=0, atol=1e-4)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), BACKBONES)
def test_backbones_of_any_size(name, options, tmp_path):
    torch.manual_seed(0)
    model = getattr(models, name)(**options).eval()
    export.write_onnx(_opened(model), [], tmp_path / "model.onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for shape in ((1, 3, 64, 160), (3, 3, 224, 96), (2, 3, 75, 97)):
        image = torch.rand(shape)
        with torch.no_grad():
            expected = model(image)
        for y, z in zip(session.run(None, {"image": image.numpy()}), expected, strict=True):
            np.testing.assert_allclose(y, z.numpy(), rtol=0, atol=1e-4)


@pytest.fixture
def export_session(run_export):
    """Exports a model at dynamic size; returns the output and a function that runs the file."""

    def run(name):
        import onnxruntime

        status, said, _ = run_export(name, "-o", "model.onnx")
        assert status == 0 and "images of any size" in said
        return said, onnxruntime.InferenceSession("model.onnx")

    return run


def normalized(model, image):
    """Return pixels as the model's pre-processor normalises them, with channels swapped."""
    processor = model.data_preprocessor
    return (image.flip(1) - processor.mean) / processor.std


SHAPES = ((2, 3, 96, 160), (1, 3, 75, 130))


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), [("det", "rpn_head"), ("retina", "bbox_head")])
def test_detector(name, head, export_session, place):
    """Maps and outputs of the dense head, named by level, at any size."""
    said, session = export_session(name)
    outside = "the second stage (roi_head)" if name == "det" else "non-maximum suppression"
    assert said.index(outside) < said.index("Exporting")
    names = [value.name for value in session.get_outputs()]
    assert names == [f"{kind}_{i}" for kind in ("map", "scores", "boxes") for i in range(3)]
    model = init_detector(str(place / f"{name}.py"), str(place / f"{name}.pth"), device="cpu")
    for shape in SHAPES:
        image = torch.rand(shape) * 255
        with torch.no_grad():
            maps = model.extract_feat(normalized(model, image))
            scores, boxes = getattr(model, head)(maps)
        found = session.run(None, {"image": image.numpy()})
        for y, z in zip(found, (*maps, *scores, *boxes), strict=True):
            np.testing.assert_allclose(y, z.numpy(), rtol=0, atol=1e-4)


@needs_onnx
@pytest.mark.slow
def test_segmentor(export_session, place):
    """UperNet, which pools to fixed numbers of cells, at any size."""
    _, session = export_session("seg")
    model = init_model(str(place / "seg.py"), str(place / "seg.pth"), device="cpu")
    for shape in SHAPES:
        image = torch.rand(shape) * 255
        with torch.no_grad():
            expected = model.encode_decode(normalized(model, image), [dict(img_shape=shape[2:])])
        (logits,) = session.run(None, {"image": image.numpy()})
        np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-4)


def test_pools_to_cells_are_products():
    x = torch.rand(2, 3, 7, 13)
    for cells in (1, 2, 6, (3, 5), (None, 4)):
        expected = nn.functional.adaptive_avg_pool2d(x, cells)
        with export._OpenPools():
            found = nn.AdaptiveAvgPool2d(cells)(x)
        torch.testing.assert_close(found, expected)
