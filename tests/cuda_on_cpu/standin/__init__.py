"""A stand-in for CUDA's driver library, which runs the emulated kernels on the host's memory.

The path of the backend ``nvrtc`` runs over it as it runs over a GPU: NVRTC compiles, the driver
"loads" what came out, and a kernel is started by the name in it. What runs then is the same kernel
compiled as C++ over ``shim/``.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import torch

from mmvssm import ops
from mmvssm.ops.nvrtc import plans, scans
from mmvssm.ops.nvrtc.compiler import find_compiler
from mmvssm.ops.nvrtc.device import Device
from mmvssm.ops.nvrtc.driver import Driver

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
SOURCES = ROOT / "ops" / "csrc"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-w"]  # warnings are checked elsewhere
# as for the emulation's own programs
EMULATED = ["-include", "shim/shared_gap.h"]
INCLUDES = [f"-I{HERE.parent / 'shim'}", f"-I{SOURCES}", f"-I{HERE.parent}"]

#: The stream that the stand-in for torch.cuda names.
STREAM = 4711


def scan_1d(batch=2, groups=2, channels=5, d_state=3, length=70, dtype=torch.float32):
    """Arguments of ``torch.ops.mmvssm.selective_scan``."""
    rows = groups * channels
    shapes = (
        [(batch, rows, length)] * 2 + [(rows, d_state)] + [(batch, groups, d_state, length)] * 2
    )
    u, delta, A, B, C = (torch.randn(*shape) for shape in shapes)
    u, delta, B, C = (t.to(dtype) for t in (u, delta, B, C))
    return [u, delta, -A.abs(), B, C, torch.randn(rows), torch.randn(rows), True]


def scan_2d(batch=2, side=9, channels=5, d_state=3, dt_rank=3, dtype=torch.float32, **change):
    """Arguments of ``torch.ops.mmvssm.selective_scan_2d``, by name."""
    pixels = side * side
    table = ops.routes.cross2d(side, side)
    values = {
        "x": torch.randn(batch, pixels, channels).to(dtype),
        "x_dbl": torch.randn(batch, pixels, 4, dt_rank + 2 * d_state).to(dtype),
        "routes": table,
        "out_routes": table,
        "A": -torch.rand(4 * channels, d_state) * 3,
        "dt_weight": 0.5 * torch.randn(4, channels, dt_rank),
        "dt_bias": torch.randn(4, channels) - 2,
        "D": torch.randn(4 * channels),
        "num_out": pixels,
        "merge": True,
    }
    return {**values, **change}


def run_all(device):
    """Forward and backward of both forms."""
    one = scan_1d()
    y, _, states = scans.IMPLEMENTATIONS["selective_scan"](device, *one, None, True)
    backward = [y, *one[:7], states, True]
    scans.IMPLEMENTATIONS["selective_scan_backward"](device, *backward)
    two = list(scan_2d().values())
    y, states = scans.IMPLEMENTATIONS["selective_scan_2d"](device, *two, None, True)
    scans.IMPLEMENTATIONS["selective_scan_2d_backward"](device, y, *two[:8], states, True)


def planner_sources():
    """Source of the planner of each scan, by the name of its entry."""
    sources = {}

    def note(scan, args, fields):
        sources[f"plan_{scan}"] = plans.planner_source(scan, args, tuple(fields))

    run_all(SimpleNamespace(run=note))
    return sources


def compile_source(source, target, *options):
    language = ["-x", "c++"] if source.suffix == ".cu" else []
    command = [COMPILER, *FLAGS, *INCLUDES, *options, *language, source, "-o", target]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def build():
    """The folder of the stand-in, built once for as long as its sources stay the same."""
    planners = planner_sources()
    kernels = [*sorted((SOURCES / "cuda").glob("*.cu")), SOURCES / "cuda" / "scan_host.cpp"]
    shim = [HERE / "driver.cpp", HERE.parent / "shim" / "block.cpp"]
    headers = [*SOURCES.glob("c*/*.*h"), *SOURCES.glob("nvrtc/*"), *HERE.parent.glob("shim/*.h")]
    digest = hashlib.sha256(" ".join([COMPILER, *FLAGS, *planners.values()]).encode())
    for path in sorted([*kernels, *shim, *headers]):
        digest.update(path.read_bytes())
    kept = ROOT / "build" / "cuda_standin" / digest.hexdigest()[:16]
    if kept.is_dir():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".partial", dir=kept.parent))
    (work / "objects").mkdir()
    objects = {path: work / "objects" / f"{path.stem}.o" for path in [*kernels, *shim]}
    jobs = [(path, target, "-c", *EMULATED) for path, target in objects.items()]
    for name, text in planners.items():
        source = work / "objects" / f"{name}.cpp"
        scan = name.removeprefix("plan_")
        source.write_text(
            f'{text}\nextern "C" void run_planner(const void* params) {{\n'
            f"  using namespace mmvssm::cuda;\n"
            f"  plan_{scan}(*static_cast<const PlannerParams*>(params));\n}}\n"
        )
        options = ["-shared", "-DMMVSSM_PLAN", "-D__global__="]
        jobs.append((source, work / f"{name}.so", *options))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: compile_source(*job), jobs))
    link = [COMPILER, "-shared", *objects.values(), "-o", work / "libcuda.so", "-ldl"]
    subprocess.run(link, check=True)
    shutil.rmtree(work / "objects")
    for old in kept.parent.glob("[0-9a-f]*"):
        shutil.rmtree(old)
    return work.rename(kept)


class StandIn(Device):
    """A device whose memory is the host's.

    Args:
        folder: As of :func:`build`.
        compiler: What compiles the kernels; None for NVRTC.
    """

    def __init__(self, folder, compiler=None):
        self.library = ctypes.CDLL(str(folder / "libcuda.so"))
        self.library.standin_log.restype = ctypes.c_char_p
        self.capturing = False
        super().__init__(0, compiler or find_compiler(), Driver(str(folder / "libcuda.so")))
        self.log()  # another's

    torch_device = torch.device("cpu")

    def guard(self):
        return nullcontext()

    def stream(self):
        return STREAM

    def is_capturing(self):
        return self.capturing

    def log(self):
        """What the driver was asked for since the last call, as lists of words."""
        lines = self.library.standin_log().decode().splitlines()
        return [line.split(maxsplit=5) for line in lines]


class NoCompiler:
    """Stands in for NVRTC where its work does not matter: the stand-in finds kernels by name."""

    version = "0.0"

    def target(self, capability):
        return f"sm_{capability}"

    def compile(self, source, target, kernel):
        entry = kernel.removeprefix("mmvssm::cuda::") if "plan_" in kernel else kernel
        return entry, b"\x7fELF" + kernel.encode()
