"""A project outside the package with its own kernel: compared, refused, trained, shown."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import setuptools  # noqa: F401  refuses to build once others have imported Python's own distutils
import torch

from abilities import WHOLE_GRAPHS, needs_opcheck
from mmvssm.models import VMamba
from mmvssm.ops.routes import route_set
from mmvssm.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "tests" / "outside_kernel"
CONFIG = "gated-vmamba-micro_digits-cls.py"

pytestmark = [
    pytest.mark.skipif(
        shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler"
    ),
    pytest.mark.skipif(
        not hasattr(torch.library, "register_autocast"),
        reason="needs a torch with torch.library.register_autocast",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the project, next to which it compiles its kernel."""
    folder = tmp_path_factory.mktemp("kernel")
    return shutil.copytree(PROJECT, folder, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def project(folder):
    """The project's module, imported and registered until the last test."""
    sys.path.insert(0, str(folder))
    yield importlib.import_module("gated_scan")
    sys.path.remove(str(folder))
    del sys.modules["gated_scan"], MODELS.module_dict["GatedSS2D"]


def arguments(num_routes, length, batch=2, pixels=9, channels=5):
    """Return random pixels, gates, and routes that skip, repeat and miss pixels."""
    x = torch.randn(batch, pixels, channels, dtype=torch.float64)
    gate = torch.rand(batch, pixels, num_routes, channels, dtype=torch.float64)
    routes = torch.randint(-1, pixels, (num_routes, length), dtype=torch.int32)
    return x.requires_grad_(), gate.requires_grad_(), routes


def gradients(scan, x, gate, routes):
    """Return a scan's output and, for an uneven loss, its gradients with respect to x and gate."""
    y = scan(x, gate, routes)
    return y, *torch.autograd.grad((y * y.detach().cos()).sum(), (x, gate))


@pytest.mark.parametrize(("num_routes", "length"), [(1, 1), (1, 20), (4, 13)])
def test_kernel_agrees_with_the_definition(project, num_routes, length):
    x, gate, routes = arguments(num_routes, length)
    expected = gradients(project.gated_scan_reference, x, gate, routes)
    for got, wanted in zip(gradients(project.gated_scan, x, gate, routes), expected):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    x, gate = (t.detach().float().requires_grad_() for t in (x, gate))
    for got, wanted in zip(gradients(project.gated_scan, x, gate, routes), expected):
        torch.testing.assert_close(got, wanted.float(), rtol=1e-5, atol=1e-5)


def test_definition_is_right_where_a_closed_form_is_known(project):
    """A gate of a constant z: a geometric series of the pixels before."""
    z, x = 0.25, torch.randn(1, 6, 2, dtype=torch.float64)
    steps = torch.arange(6)
    weights = z * (1 - z) ** (steps[:, None] - steps).clamp(min=0).double().tril()
    gate = torch.full((1, 6, 1, 2), z, dtype=torch.float64)
    y = project.gated_scan_reference(x, gate, steps[None].int())
    torch.testing.assert_close(y, weights.tril() @ x)


@needs_opcheck
def test_op_is_registered_as_torch_wants_it(project):
    torch.library.opcheck(project.gated_scan, arguments(3, 13))


def test_autocast_leaves_the_scan_in_float32(project):
    x, gate, routes = arguments(2, 13)
    with torch.autocast("cpu", torch.bfloat16):
        y = project.gated_scan(x.bfloat16(), gate.bfloat16(), routes)
    assert y.dtype == torch.float32
    expected = project.gated_scan(x.bfloat16().float(), gate.bfloat16().float(), routes)
    assert torch.equal(y, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, g, r: (x.half(), g.half(), r), TypeError, "x must be float32 or float64, got"),
        (lambda x, g, r: (x, g[:, :, :1], r), ValueError, r"gate must be .*\(2, 9, 2, 5\), got"),
        (lambda x, g, r: (x, g, r + 1), ValueError, "routes must be int32, from -1 to 8, got"),
        (lambda x, g, r: (x, g, r.long()), ValueError, "routes must be int32"),
    ],
)
def test_wrong_arguments(project, change, error, message):
    x, gate, _ = arguments(2, 1)
    with pytest.raises(error, match=message):
        project.gated_scan(*change(x, gate, torch.tensor([[8], [-1]], dtype=torch.int32)))


def test_backbone_of_the_mixer(project, monkeypatch):
    """The kernel's outputs are those of the definition, also when compiled to one graph."""
    arch = dict(embed_dims=8, depths=(1, 1, 1, 1), mixer=dict(type="GatedSS2D", scan="bidi"))
    model = VMamba(arch, out_indices=(3,)).eval()
    image = torch.rand(2, 3, 40, 56)
    with torch.no_grad():
        (got,) = model(image)
        compiled = torch.compile(model, fullgraph=WHOLE_GRAPHS, backend="eager")
        torch.testing.assert_close(compiled(image)[0], got)
        monkeypatch.setattr(project, "gated_scan", project.gated_scan_reference)
        torch.testing.assert_close(model(image)[0], got, rtol=1e-4, atol=1e-5)


def test_scans_that_write_elsewhere_are_refused(project):
    def shifted(height, width):
        table = torch.arange(height * width, dtype=torch.int32)[None]
        return table, table.roll(1, 1)

    assert route_set(shifted, 2, 2).writes_elsewhere
    with pytest.raises(ValueError, match="'shifted' writes elsewhere than it reads"):
        project.GatedSS2D(8, scan=shifted)(torch.rand(1, 4, 4, 8))


def test_trains_with_the_stock_script(folder):
    script = Path(find_spec("mmpretrain").origin).parent / ".mim" / "tools" / "train.py"
    options = ["train_dataloader.batch_size=1442", "train_cfg.max_epochs=1"]
    options += ["train_cfg.val_interval=2", "auto_scale_lr.enable=False"]
    for command in (
        [ROOT / "tools" / "make_demo_data.py", "data", "--task", "cls"],
        [script, CONFIG, "--no-persistent-workers", "--work-dir", "out", "--cfg-options", *options],
    ):
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    weights = torch.load(folder / "out" / "epoch_1.pth", weights_only=False)["state_dict"]
    assert weights["backbone.stages.0.blocks.0.mixer.gates.weight"].shape == (4 * 32, 32)
    assert all(value.isfinite().all() for value in weights.values())


def test_at_most_150_lines():
    files = (PROJECT / "gated_scan.py", PROJECT / "gated_scan.cpp")
    assert sum(len(file.read_text().splitlines()) for file in files) <= 150


def test_page_shows_every_line_of_the_project():
    page = (ROOT / "docs" / "understand" / "kernel.md").read_text()
    for file in PROJECT.glob("gated*.*"):
        language = {".py": "python", ".cpp": "cpp"}[file.suffix]
        parts = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
        shown = "".join(part for part in parts if part in file.read_text())
        assert shown.split() == file.read_text().split(), file.name
