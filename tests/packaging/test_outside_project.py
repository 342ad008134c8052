"""A project outside the package: its routes, family, training, picture and conversion."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "tests" / "outside_project"
CONFIG = "diagonal-vmamba-tiny_digits-cls.py"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with a few digits, and its checkpoint after one iteration."""
    folder = tmp_path_factory.mktemp("outside")
    shutil.copytree(PROJECT, folder, dirs_exist_ok=True)
    run(folder, ROOT / "tools" / "make_demo_data.py", "data", "--task", "cls")
    script = Path(find_spec("mmpretrain").origin).parent / ".mim" / "tools" / "train.py"
    # all digits in one iteration
    options = ["train_dataloader.batch_size=1442", "train_cfg.max_epochs=1"]
    options += ["train_cfg.val_interval=2", "auto_scale_lr.enable=False"]
    run(
        folder,
        script,
        CONFIG,
        "--no-persistent-workers",
        "--work-dir",
        "out",
        "--cfg-options",
        *options,
    )
    return folder


def run(folder, script, *arguments):
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_at_most_sixty_lines():
    lines = [line for file in PROJECT.glob("*.py") for line in file.read_text().splitlines()]
    assert len(lines) <= 60


def test_trains_with_the_stock_script(project):
    weights = torch.load(project / "out" / "epoch_1.pth", weights_only=False)["state_dict"]
    assert weights["backbone.stages.0.blocks.0.mixer.x_proj_weight"].shape == (2, 1 + 2, 16)
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("model", [CONFIG, "diagonal-vmamba-tiny"])
def test_routes_are_drawn(project, model):
    tool = ROOT / "tools" / "analysis_tools" / "routes.py"
    arguments = (model, "--import", "diagonal_vmamba", "--grid", 2, 3, "--out", "routes.svg")
    out = run(project, tool, *arguments)
    assert out.splitlines() == [
        "diagonals: 6 steps over 2x3",
        "diagonals reversed: 6 steps over 2x3",
        "wrote routes.svg",
    ]
    assert (project / "routes.svg").is_file()


@pytest.mark.parametrize("options", [("--import", "diagonal_vmamba"), ("--arch", CONFIG)])
def test_checkpoint_is_converted(project, options):
    tool = ROOT / "tools" / "convert_ema.py"
    checkpoint = project / "out" / "epoch_1.pth"
    run(project, tool, checkpoint, "converted.pth", "--force", *options)
    (product,) = project.glob("converted-*.pth")
    product = torch.load(product, weights_only=True)
    assert product["meta"]["mmvssm"]["arch"] == "tiny"
    trained = torch.load(checkpoint, weights_only=False)["state_dict"]
    assert product["state_dict"].keys() == trained.keys()
    assert all(torch.equal(product["state_dict"][key], trained[key]) for key in trained)


def test_how_to_page_shows_this_project():
    page = (ROOT / "docs" / "extending.md").read_text()
    for file in PROJECT.glob("*.py"):
        assert f"```python\n{file.read_text()}```" in page


def test_example_of_the_op_runs():
    page = (ROOT / "docs" / "extending.md").read_text()
    names = {}
    exec(re.findall(r"```python\n(import torch\n.*?)```", page, re.DOTALL)[-1], names)
    assert names["y"].shape == (2, 48, 16)
