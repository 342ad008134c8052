"""Small networks of every family learn real digits with the command that a user types."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MICRO = sorted(path.stem for path in (ROOT / "configs" / "demo").glob("*-micro_digits-cls.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder where the tools run, with the demo data in its folder `data`."""
    folder = tmp_path_factory.mktemp("micro")
    tool = ROOT / "tools" / "make_demo_data.py"
    subprocess.run(
        [sys.executable, tool, folder / "data", "--task", "cls"], check=True, capture_output=True
    )
    return folder


def test_every_family_has_one():
    families = {name.removesuffix("-micro_digits-cls") for name in MICRO}
    assert families == {
        "vmamba", "efficient-vmamba", "msvmamba", "local-vmamba", "local-vim", "vim", "mambavision",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MICRO)
def test_learns_digits(name, folder):
    work_dir = folder / "work_dirs" / name
    config = ROOT / "configs" / "demo" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "train.py", config, "--work-dir", work_dir],
        cwd=folder,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (log,) = work_dir.glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[-1]["accuracy/top1"] >= 90
