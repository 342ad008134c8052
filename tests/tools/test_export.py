"""tools/export.py: what it writes computes what the model does, at other sizes as well."""

import sys
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.apis import init_detector
from mmpretrain.apis import get_model
from mmseg.apis import init_model
from torch import nn
from torch.export import Dim

from mmvssm import models, ops
from mmvssm.engine import export
from mmvssm.ops.backend import registered_ops

TOOL = Path(__file__).resolve().parents[2] / "tools" / "export.py"
CONFIGS = Path(__file__).parent / "configs"
LACKING = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
needs_onnx = pytest.mark.skipif(
    bool(LACKING), reason=f"requirements/export.txt is not installed: no {', '.join(LACKING)}"
)
#: Of a single scan: enough for ONNX Runtime to work on it in several threads.
CHANNELS = 32
STAGES = dict(embed_dims=16, depths=(1, 1, 1, 1))
LAYERS = dict(embed_dims=32, num_layers=2)
BACKBONES = {
    "VMamba": STAGES,
    "EfficientVMamba": STAGES,
    "MSVMamba": STAGES,
    "LocalVMamba": STAGES,
    "MambaVision": dict(embed_dims=16, depths=(1, 1, 2, 2)),
    "Vim": LAYERS,
    "LocalVim": LAYERS,
}


class Scan(nn.Module):
    """A scan with tables that are inputs, so that no size is known when it is exported."""

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
    """Zero tokens, repeated visits, rows of their own; lengths from one step to thousands."""
    import onnx
    import onnxruntime

    scan = Scan(routes, merge, is_apart, is_shared, has_skip)
    open_ = Dim.DYNAMIC
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
    (folder / "small.py").write_text(
        f"_base_ = {str(CONFIGS / 'cls.py')!r}\n"
        "model = dict(backbone=dict(arch=dict(depths=(1, 1)), out_indices=(1,)),\n"
        "             head=dict(in_channels=16))\n"
    )
    for name in ("cls", "det", "seg"):
        (folder / f"{name}.py").write_text(f"_base_ = {str(CONFIGS / f'{name}.py')!r}\n")
    build = dict(small=get_model, cls=get_model, det=init_detector, seg=init_model)
    for name, make in build.items():
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
    """The classifier's logits of pixels, normalised here."""
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
    """The place of the token, and tables of the model's own grid, are part of the graph."""
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


def test_refusals(run_export, run_here, place, monkeypatch):
    assert run_export("small", "-o", "model.pb")[0] == 2
    assert run_export("small", "-o", "model.pt2", "--shape", "8", "8")[0] == 2
    assert "there is no folder 'away'" in run_export("small", "-o", "away/model.pt2")[0]
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert run_export("small", "-o", "model.onnx")[0] == (
        "export.py: error: .onnx files need onnx, onnxscript:"
        " pip install -r requirements/export.txt"
    )


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_of_any_size(name, tmp_path):
    torch.manual_seed(0)
    model = getattr(models, name)(BACKBONES[name]).eval()
    export.write_onnx(_opened(model), [], tmp_path / "model.onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for shape in ((1, 3, 64, 160), (3, 3, 224, 96)):
        image = torch.rand(shape)
        with torch.no_grad():
            expected = model(image)
        for y, z in zip(session.run(None, {"image": image.numpy()}), expected, strict=True):
            np.testing.assert_allclose(y, z.numpy(), rtol=0, atol=1e-4)


@needs_onnx
@pytest.mark.slow
def test_detector(run_export, place):
    """Maps and outputs of the first stage, named by level."""
    import onnxruntime

    status, said, _ = run_export("det", "-o", "model.onnx")
    assert status == 0 and "the second stage (roi_head)" in said
    session = onnxruntime.InferenceSession("model.onnx")
    names = [value.name for value in session.get_outputs()]
    assert names == [f"{kind}_{i}" for kind in ("map", "scores", "boxes") for i in range(4)]
    model = init_detector(str(place / "det.py"), str(place / "det.pth"), device="cpu")
    image = torch.rand(2, 3, 96, 160) * 255
    with torch.no_grad():
        mean, std = model.data_preprocessor.mean, model.data_preprocessor.std
        maps = model.extract_feat((image.flip(1) - mean) / std)
        scores, boxes = model.rpn_head(maps)
    for y, z in zip(session.run(None, {"image": image.numpy()}), (*maps, *scores, *boxes)):
        np.testing.assert_allclose(y, z.numpy(), rtol=0, atol=1e-4)


@needs_onnx
@pytest.mark.slow
def test_segmentor(run_export, place):
    """Pools to a fixed number of cells, so the size is fixed, which is said before."""
    import onnxruntime

    status, said, _ = run_export("seg", "-o", "model.onnx")
    assert status == 0 and said.index("are fixed at 512x512") < said.index("Exporting")
    status, said, _ = run_export("seg", "-o", "small.onnx", "--shape", "64", "96")
    assert status == 0 and "images of 64x96" in said
    model = init_model(str(place / "seg.py"), str(place / "seg.pth"), device="cpu")
    image = torch.rand(3, 3, 64, 96) * 255
    with torch.no_grad():
        mean, std = model.data_preprocessor.mean, model.data_preprocessor.std
        expected = model.encode_decode((image.flip(1) - mean) / std, [dict(img_shape=(64, 96))])
    (logits,) = onnxruntime.InferenceSession("small.onnx").run(None, {"image": image.numpy()})
    np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-4)
