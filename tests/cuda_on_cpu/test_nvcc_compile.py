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
            *("--keep", "--keep-dir", tmp_path),
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
    # A launch of more threads than a kernel was compiled for fails.
    code = next(tmp_path.glob("*.ptx")).read_text()
    most = re.findall(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)", code)
    assert len(most) == code.count(".entry "), most
    for name, threads in most:
        states = re.search(r"_kernelI\w+?Li(\d+)ELi", name)[1]
        assert int(threads) >= (192 if "backward" in name and states == "16" else 128), name
