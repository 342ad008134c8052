"""The CUDA kernels compiled as C++ and run on the CPU, under AddressSanitizer.

``shim/`` stands in for CUDA's headers: a block's threads are fibers, fresh memory is NaN, copies
arrive only when they are waited for. ``driver.cpp`` compares every output of a case with a float64
reference and with itself under other orders of the threads.
"""

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from mmvssm.ops.reference import selective_scan_2d_reference, selective_scan_reference

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CASES = HERE.parent / "scan_cases"
KERNELS = ROOT / "ops" / "csrc" / "cuda"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = [
    *("-std=c++17", "-O1", "-g1", "-fsanitize=address"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    *("-include", "shim/shared_gap.h"),
]

CASES_2D = """
L=1 D=1 N=1 R=1
L=2 D=3 N=2 R=3 K=2 batch=2
L=17 D=33 N=1 R=6 K=4
L=17 D=70 N=1 R=6 K=4 threads=96 batch=2
L=192 D=70 N=1 R=6 K=2 batch=2 chunk=1 pair=1
L=1100 D=3 N=1 R=2 K=2 chunk=1
L=400 D=3 N=5 R=6 K=2 chunk=2 pair=1 batch=2
L=257 D=33 N=6 R=5 chunk=3 holes=10
L=129 D=5 N=33 R=3 chunk=1
L=70 D=33 N=1 R=6 K=2 offset=1 chunk=1
L=70 D=33 N=4 R=6 K=2 offset=1 type=bfloat16 y=bfloat16
L=70 D=3 N=16 R=3 K=2 offset=1 type=half y=float pair=1
L=300 D=33 N=1 R=2 long_steps=1 chunk=2
L=63 D=3 N=3 R=1 K=4 merge=0
L=64 D=33 N=5 R=6 K=2 threads=64
L=65 D=70 N=16 R=6 K=2 threads=96 chunk=1
L=130 D=33 N=1 R=3 K=4 batch=2 threads=64 chunk=1
L=130 D=3 N=16 R=17 K=2 chunk=1
L=65 D=3 N=20 R=48 K=1
L=130 D=70 N=20 R=6 threads=32 chunk=1
L=64 D=1 N=8 R=65 K=2 skip=0
L=2 D=1 N=4 R=33
L=17 D=3 N=2 R=3 P=29 K=2
L=65 D=33 N=2 R=4 K=4 holes=30
L=130 D=3 N=16 R=6 K=2 holes=30 repeats=1 P=40 chunk=1
L=130 D=33 N=1 R=3 K=4 repeats=1 P=5 batch=2 chunk=2 pair=1
L=64 D=3 N=20 R=1 K=2 repeats=1 P=30 merge=0
L=17 D=3 N=3 R=3 K=2 holes=100
L=65 D=70 N=3 R=35 K=2 repeats=1 holes=10 P=40 threads=96
L=65 D=33 N=1 R=6 K=4 out=1 Q=80
L=65 D=3 N=5 R=6 K=2 out=1 Q=195 merge=0 holes=10
L=63 D=3 N=16 R=3 K=2 out=1 Q=20 repeats=1 P=100 batch=2
L=129 D=33 N=2 R=3 K=4 x_per_route=1 chunk=1
L=65 D=3 N=16 R=17 K=2 x_per_route=1 merge=0 holes=10
L=17 D=70 N=1 R=3 K=4 shared=1 P=68 threads=64
L=65 D=3 N=20 R=6 K=4 shared=1 x_per_route=1 holes=20
L=65 D=33 N=1 R=3 K=4 type=half y=float threads=64
L=65 D=3 N=16 R=6 K=2 type=half y=half merge=0
L=64 D=3 N=5 R=1 K=4 type=half y=half shared=1
L=63 D=33 N=20 R=3 K=2 type=half y=float x_per_route=1 batch=2
L=130 D=3 N=1 R=48 K=2 type=half y=half holes=20 chunk=1
L=65 D=33 N=1 R=6 K=4 type=bfloat16 y=bfloat16 pair=1 chunk=1
L=64 D=33 N=16 R=6 K=2 type=bfloat16 y=float threads=64
L=17 D=3 N=3 R=17 K=1 type=bfloat16 y=bfloat16 x_per_route=1
L=130 D=3 N=20 R=3 K=2 type=bfloat16 y=bfloat16 merge=0 out=1 Q=140 chunk=2
L=65 D=33 N=2 R=4 K=4 facts=0
L=65 D=3 N=16 R=6 K=2 repeats=1 P=40 shared=1 facts=0 chunk=1
L=64 D=33 N=1 R=3 K=2 type=half y=half repeats=1 P=40 merge=0
L=64 D=3 N=20 R=3 K=2 type=bfloat16 y=bfloat16 out=1 Q=70 holes=10 facts=0
L=17 D=33 N=1 R=6 K=4 disjoint=1 P=68 shared=1
L=17 D=70 N=1 R=6 K=4 disjoint=1 P=70 shared=1 batch=2 threads=64
L=17 D=33 N=3 R=6 K=4 disjoint=1 P=68
L=33 D=3 N=20 R=3 K=2 disjoint=1 P=66 holes=20 shared=1 x_per_route=1
L=65 D=33 N=5 R=3 K=2 disjoint=1 P=60 repeats=1 shared=1 chunk=1
L=65 D=3 N=16 R=3 K=3 disjoint=1 P=90 repeats=1 shared=1 type=half y=half
L=33 D=33 N=20 R=3 K=2 disjoint=1 P=67 shared=1 type=bfloat16 y=bfloat16
L=130 D=200 N=16 R=6 K=2 chunk=1
L=193 D=33 N=9 R=5 K=2 holes=10 chunk=2 type=half y=float
L=70 D=97 N=12 R=9 K=2 threads=64 offset=1
L=140 D=5 N=10 R=3 K=1 repeats=1 P=50 long_steps=1 type=bfloat16 y=float
L=33 D=3 N=1 R=3 K=2 disjoint=1 P=66 shared=1 type=half y=half threads=64
L=33 D=3 N=4 R=3 K=2 disjoint=1 P=66 shared=1 merge=0 holes=10
L=17 D=33 N=1 R=6 K=4 disjoint=1 P=68 shared=1 facts=0
L=9 D=3 N=1 R=5 K=2 batch=6
L=9 D=3 N=6 R=3 K=2 batch=3 repeats=1 P=8 shared=1
L=130 D=3 N=5 R=3 batch=7 chunk=1
L=18000 D=5 N=1 R=1 K=1 chunk=1
L=700 D=3 N=1 R=2 K=2 chunk=4
L=600 D=5 N=16 R=3 K=2 chunk=4 holes=10 repeats=1 P=300
""".strip().splitlines()

CASES_1D = """
L=1 D=1 N=1
L=2 D=3 N=2 K=2 batch=2
L=17 D=70 N=1 K=4 threads=96
L=63 D=33 N=3 K=2 bias=0
L=64 D=3 N=16 K=4 skip=0
L=65 D=70 N=5 K=2 threads=64 softplus=0
L=130 D=33 N=20 K=1 batch=2 chunk=1
L=130 D=3 N=1 K=4 bias=0 skip=0 softplus=0 chunk=1
L=65 D=33 N=16 K=1 threads=32
L=65 D=33 N=1 K=2 type=half y=float
L=64 D=3 N=20 K=2 type=half y=half
L=130 D=3 N=4 K=1 type=half y=half softplus=0 skip=0 chunk=1
L=63 D=33 N=16 K=2 type=bfloat16 y=bfloat16
L=65 D=70 N=2 K=1 type=bfloat16 y=float threads=64 chunk=1
L=1100 D=3 N=7 K=1 batch=2 chunk=1
L=320 D=33 N=40 K=1 chunk=2
L=70 D=33 N=1 K=2 offset=1 type=half y=half chunk=1
L=300 D=3 N=16 K=1 long_steps=1 offset=1 chunk=2
L=2 D=1 N=20 K=1 type=bfloat16 y=bfloat16 bias=0
L=700 D=3 N=5 K=1 chunk=4
""".strip().splitlines()

MISTAKES = {
    "uninitialised_shared": "wrong result",
    "copy_not_awaited": "wrong result",
    "copy_never_awaited": "copies under way",
    "misaligned_copy": "not aligned",
    "missing_barrier": "wrong result",
    "barrier_in_branch": "divergence",
    "return_before_barrier": "divergence",
    "shuffle_in_branch": "divergence",
    "shuffle_outside_mask": "outside its mask",
    "overrun_between_arrays": "use-after-poison",
    "overrun_of_shared": "AddressSanitizer",
    "overrun_of_global": "heap-buffer-overflow",
}


def run(program, *words):
    """Runs a program of this folder; returns its exit status and what it printed."""
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    environment.pop("LD_PRELOAD", None)
    done = subprocess.run(
        [program, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout


def compile_object(source, target):
    language = ["-x", "c++"] if source.suffix == ".cu" else []
    includes = [f"-I{HERE / 'shim'}", f"-I{KERNELS.parent}", f"-I{HERE}", f"-I{HERE.parent}"]
    return subprocess.run(
        [COMPILER, *FLAGS, *includes, *language, "-c", source, "-o", target],
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """``driver`` and ``mistakes``, built once for as long as their sources stay the same."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"needs the C++ compiler {COMPILER}")
    kernels = [*KERNELS.glob("*.cu"), *KERNELS.glob("*_host.cpp")]
    sources = [*kernels, *HERE.glob("*.cpp"), *HERE.glob("shim/*.cpp")]
    headers = [*KERNELS.parent.glob("c*/*.*h"), *HERE.glob("**/*.h"), *CASES.glob("*.h")]
    digest = hashlib.sha256(" ".join([COMPILER, *FLAGS]).encode())
    for path in sorted([*sources, *headers]):
        digest.update(path.read_bytes())
    kept = ROOT / "build" / "cuda_on_cpu" / digest.hexdigest()[:16]
    work = tmp_path_factory.mktemp("cuda_on_cpu")
    built = work / "programs"
    if kept.is_dir():
        return shutil.copytree(kept, built)
    # The longest first, so that two compilers end together.
    sources.sort(key=lambda path: path.stat().st_size, reverse=True)
    objects = {path.stem: work / f"{path.stem}.o" for path in sources}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(compile_object, sources, [objects[p.stem] for p in sources])
        for result in results:
            assert result.returncode == 0, result.stderr
    built.mkdir()
    drivers = [path.stem for path in HERE.glob("driver*.cpp")]
    for program, parts in {
        "driver": [*drivers, "block", *(path.stem for path in kernels)],
        "mistakes": ["mistakes", "block"],
    }.items():
        link = [COMPILER, "-fsanitize=address", *(objects[p] for p in parts)]
        subprocess.run([*link, "-o", built / program], check=True)
    shutil.rmtree(kept.parent, ignore_errors=True)
    shutil.copytree(built, kept.with_suffix(".partial")).rename(kept)
    return built


@pytest.mark.parametrize("case", CASES_2D)
def test_scan_along_routes(programs, case):
    status, output = run(programs / "driver", "2d", *case.split())
    assert status == 0, output


@pytest.mark.parametrize("case", CASES_1D)
def test_scan_of_sequences(programs, case):
    status, output = run(programs / "driver", "1d", *case.split())
    assert status == 0, output


LONG = [
    "2d L=65536 D=8 N=1 R=1 chunk=64",
    "2d L=65536 D=8 N=4 R=1 chunk=64 long_steps=1",
    "1d L=65536 D=8 N=1 chunk=64 long_steps=1",
    "1d L=65536 D=8 N=1",
]


@pytest.mark.slow
@pytest.mark.parametrize("case", LONG)
def test_long_sequences(programs, case):
    status, output = run(programs / "driver", *case.split())
    assert status == 0, output


def rule(programs, sizes):
    """Return how scan_rules.h cuts a scan on a device of 132 multiprocessors."""
    status, output = run(programs / "driver", "rule", *sizes.split())
    assert status == 0, output
    words = output.split()
    return dict(zip(words[::2], map(int, words[1::2])))


@pytest.mark.parametrize(
    "sizes",
    [
        "batch=128 K=4 D=96 N=1 L=3136",
        "batch=128 K=4 D=192 N=16 L=3136",
        "batch=128 K=4 D=768 N=1 L=49",
    ],
)
def test_batches_that_fill_the_device_are_not_cut(programs, sizes):
    assert rule(programs, sizes)["chunks"] == 1


@pytest.mark.parametrize("backward", [0, 1])
@pytest.mark.parametrize(
    "sizes",
    [
        "batch=1 K=4 D=96 N=1 L=67200",
        "batch=2 K=4 D=192 N=16 L=67200",
        "batch=4 K=4 D=192 N=1 L=16384",
    ],
)
def test_long_sequences_are_cut_until_the_device_is_full(programs, sizes, backward):
    cut = rule(programs, f"{sizes} backward={backward}")
    batch, routes = (int(word.split("=")[1]) for word in sizes.split()[:2])
    warps = batch * routes * cut["parts"] * cut["chunks"] * cut["threads"] // 32
    assert 132 * 8 <= warps <= 132 * 24
    assert cut["chunks"] * cut["chunk_tiles"] * 64 >= int(sizes.split("L=")[1])


@pytest.mark.parametrize("backward", [0, 1])
@pytest.mark.parametrize(
    "sizes",
    [
        "batch=1 K=4 D=96 N=1 L=67200",
        "batch=4 K=4 D=192 N=16 L=16384",
        "batch=3 K=4 D=96 N=16 L=10000",
    ],
)
def test_no_multiprocessor_gets_much_more_than_its_share(programs, sizes, backward):
    """Compare the tiles of the busiest multiprocessor with an even share of all tiles."""
    cut = rule(programs, f"{sizes} backward={backward}")
    batch, routes = (int(word.split("=")[1]) for word in sizes.split()[:2])
    blocks = batch * routes * cut["parts"]
    most = -(-blocks * cut["chunks"] // 132) * cut["chunk_tiles"]
    even = blocks * int(sizes.split("L=")[1]) / 64 / 132
    assert most <= 1.25 * even


def test_chunks_are_never_too_short_to_pay(programs):
    cut = rule(programs, "batch=1 K=4 D=96 N=1 L=784")
    assert cut["chunk_tiles"] >= 2
    assert rule(programs, "batch=1 K=4 D=96 N=1 L=196")["chunks"] <= 2


def test_lanes_hold_two_channels_where_they_fill_whole_warps(programs):
    assert rule(programs, "batch=128 K=4 D=192 N=1 L=784")["lane_channels"] == 2
    assert rule(programs, "batch=128 K=4 D=96 N=1 L=784")["lane_channels"] == 1
    assert rule(programs, "batch=128 K=4 D=192 N=4 L=784")["lane_channels"] == 1


def test_the_backward_scan_of_9_to_16_states_takes_six_warps(programs):
    assert rule(programs, "batch=128 K=4 D=192 N=16 L=784 backward=1")["threads"] == 192
    assert rule(programs, "batch=128 K=4 D=192 N=16 L=784")["threads"] == 96
    assert rule(programs, "batch=128 K=4 D=192 N=8 L=784 backward=1")["threads"] == 96


def test_lanes_share_the_states_that_one_cannot_hold(programs):
    for d_state in (1, 4, 8, 16, 17, 256):
        for backward in (0, 1):
            cut = rule(programs, f"D=64 N={d_state} L=64 backward={backward}")
            padded = cut["states"] * cut["state_lanes"]
            assert d_state <= padded < 2 * max(d_state, 4)


def test_blocks_shrink_until_they_fit_shared_memory(programs):
    assert rule(programs, "D=128 L=64 bytes=1000 shared=100000")["threads"] == 64


def test_a_block_of_one_warp_is_tried_before_giving_up(programs):
    """Six warps halve to three: the rank of a late stage leaves 64 KB for one only."""
    sizes = "D=192 N=16 L=64 backward=1 bytes=1100 shared=65536"
    assert rule(programs, sizes)["threads"] == 32
    assert rule(programs, sizes.replace("1100", "2048"))["threads"] == 32
    status, output = run(programs / "driver", "rule", *sizes.replace("1100", "2049").split())
    assert status == 3, output


def test_one_channel_a_lane_is_tried_before_giving_up(programs):
    sizes = "D=128 N=1 L=64 backward=1 bytes=0 channel_bytes=2048 shared=65536"
    cut = rule(programs, sizes)
    assert (cut["threads"], cut["lane_channels"], cut["parts"]) == (32, 1, 4)
    assert rule(programs, sizes.replace("2048", "1024"))["lane_channels"] == 2


@pytest.mark.parametrize("d_state", [257, 2**31 - 2])
def test_too_many_states_are_an_error(programs, d_state):
    status, output = run(programs / "driver", "rule", "D=1", f"N={d_state}", "L=64", "backward=1")
    assert status == 3
    assert "does not fit a block" in output


@pytest.mark.parametrize("mistake", MISTAKES)
def test_shim_notices(programs, mistake):
    status, output = run(programs / "mistakes", mistake)
    assert status != 0
    assert MISTAKES[mistake] in output


def test_shim_runs_a_correct_kernel(programs):
    assert run(programs / "mistakes", "none") == (0, "")


@pytest.mark.parametrize("dt_rank", [4000, 5_000_000])
def test_too_much_shared_memory_is_an_error(programs, dt_rank):
    status, output = run(programs / "driver", "2d", f"R={dt_rank}", "L=2", "D=1")
    assert status == 3
    assert "forward: does not fit a block" in output


def read_dump(path):
    """Return the arrays that ``driver ... dump=path`` wrote, as float64 tensors."""
    arrays = {}
    with open(path, "rb") as file:
        while line := file.readline():
            name, count = line.split()
            values = np.frombuffer(file.read(8 * int(count)))
            arrays[name.decode()] = torch.from_numpy(values.copy())
    return arrays


def assert_close(arrays, gradients, y):
    """Compare outputs of the kernels with values and gradients of the PyTorch definition."""
    y.backward(arrays["dy"].view_as(y))
    pairs = {"y": y.detach(), **{name: leaf.grad for name, leaf in gradients.items()}}
    for name, want in pairs.items():
        error = (arrays[name] - want.flatten()).norm() / want.norm()
        assert error < 3e-6, (name, float(error))


def test_routes_against_autograd(programs, tmp_path):
    K, D, N, R, L, P = 2, 33, 5, 3, 65, 50
    sizes = f"K={K} D={D} N={N} R={R} L={L} P={P}".split()
    sizes += ["batch=2", "holes=15", "repeats=1", "out=1", "Q=70", "merge=0"]
    path = tmp_path / "dump"
    status, output = run(programs / "driver", "2d", *sizes, f"dump={path}")
    assert status == 0, output
    arrays = read_dump(path)
    shapes = {
        "x": (2, P, D),
        "x_dbl": (2, P, K, R + 2 * N),
        "A": (K * D, N),
        "dt_weight": (K, D, R),
        "dt_bias": (K, D),
        "D": (K * D,),
    }
    leaf = {n: arrays[n].view(shape).requires_grad_() for n, shape in shapes.items()}
    routes, out_routes = (arrays[n].view(K, L).int() for n in ("routes", "out_routes"))
    y = selective_scan_2d_reference(
        leaf["x"],
        leaf["x_dbl"],
        routes,
        leaf["A"],
        leaf["dt_weight"],
        leaf["dt_bias"],
        leaf["D"],
        out_routes=out_routes,
        num_out=70,
        merge="none",
    )
    names = {"x": "dx", "x_dbl": "dx_dbl", "A": "dA", "D": "dD", "dt_bias": "dbias"}
    names["dt_weight"] = "ddt_weight"
    assert_close(arrays, {to: leaf[name] for name, to in names.items()}, y)


def test_sequences_against_autograd(programs, tmp_path):
    K, D, N, L = 2, 33, 5, 65
    path = tmp_path / "dump"
    sizes = f"K={K} D={D} N={N} L={L} batch=2".split()
    status, output = run(programs / "driver", "1d", *sizes, f"dump={path}")
    assert status == 0, output
    arrays = read_dump(path)
    shapes = {
        "u": (2, K * D, L),
        "delta": (2, K * D, L),
        "A": (K * D, N),
        "B": (2, K, N, L),
        "C": (2, K, N, L),
        "D": (K * D,),
        "delta_bias": (K * D,),
    }
    leaf = {n: arrays[n].view(shape).requires_grad_() for n, shape in shapes.items()}
    y, last_state = selective_scan_reference(**leaf, delta_softplus=True)
    names = {"u": "du", "delta": "ddelta", "A": "dA", "B": "dB", "C": "dC", "D": "dD"}
    names["delta_bias"] = "dbias"
    assert (arrays["last_state"] - last_state.flatten()).norm() < 3e-6 * last_state.norm()
    assert_close(arrays, {to: leaf[name] for name, to in names.items()}, y)
