"""Every CUDA source compiles for sm_90 wherever nvcc is, so that none can rot without a GPU."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parent.parent.parent / "ops" / "csrc" / "cuda"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, which is not installed")
@pytest.mark.parametrize("source", sorted(KERNELS.glob("*.cu")), ids=lambda path: path.name)
def test_compiles_for_sm_90(source, tmp_path):
    done = subprocess.run(
        [
            *("nvcc", "-O3", "-std=c++17", "-arch=sm_90", "-Xptxas", "-v"),
            *(f"-I{KERNELS.parent}", "-c", source, "-o", tmp_path / "kernel.o"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    spills = re.findall(r"(\d+) bytes spill stores", done.stderr)
    assert spills, done.stderr
    assert set(spills) == {"0"}, done.stderr
