"""The model of GPU time: its arithmetic checked by hand, and its inputs."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.execution import Lane
from benchmarks.gpu.launches import HostCode
from benchmarks.gpu.machine_code import find_tool, parse, short_name
from benchmarks.gpu.multiprocessor import H100, resident_blocks
from benchmarks.gpu.operands import Launch, Region, UnknownCodeError
from benchmarks.gpu.prediction import (
    Bulk,
    Traffic,
    lane_addresses,
    predict,
    sample,
    transfer_size,
)
from benchmarks.problems import Scan

HERE = Path(__file__).resolve().parent
BENCHMARKS = HERE.parents[1] / "benchmarks"
SCAN = Scan("a scan", 2, 96, 1, 64, 64, 6)
# for (i < steps) out[blockIdx.x * steps * blockDim.x + i * blockDim.x + threadIdx.x] = i
SASS = (HERE / "fill_kernel.sass").read_text()
USAGE = "Function _Z11fill_kernelIfEv6Params:\n  REG:14 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:544"
KERNELS = parse(SASS, USAGE)
FILL = KERNELS["fill_kernel<float>"]


def fill_launch(blocks, threads=64, steps=10):
    out = Region("out", 1 << 33, 4 * blocks * threads * steps)
    return Launch(
        FILL.name, blocks, threads, 0, struct.pack("<Qi4x", out.base, steps), regions=(out,)
    )


def has(tool):
    try:
        return bool(find_tool(tool))
    except FileNotFoundError:
        return False


needs_compilers = pytest.mark.skipif(
    not (has("nvcc") and has("cuobjdump")), reason="needs nvcc and cuobjdump"
)
needs_host_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def test_machine_code_is_read():
    assert list(KERNELS) == ["fill_kernel<float>"]
    assert (FILL.registers, FILL.stack, FILL.spills) == (14, 0, 0)
    compare, branch = FILL.code[2], FILL.code[0x170 // 16]
    assert compare.opcode == "ISETP.GE.AND"
    assert compare.operands == ("P0", "PT", "R11", "0x1", "PT")
    assert (compare.stall, compare.waits) == (13, (0,))
    assert (branch.guard, branch.operands) == ("!P0", ("0x100",))
    assert FILL.code[0x160 // 16].frees == (0,)  # the store, when it has read its operands


def test_names_are_short():
    name = "void a::cuda::k<a::(anonymous namespace)::T<float, 16>, 1>(a::T<float, 16>::Params)"
    assert short_name(name) == "k<T<float, 16>, 1>"


def test_a_lane_runs_the_path_through_the_code():
    """16 instructions before the loop, 8 a step, one to end."""
    trace = Lane(FILL, fill_launch(blocks=3), block=2, thread=33).run()
    assert len(trace.steps) == 16 + 8 * 10 + 1
    (store,) = trace.accesses.values()
    assert (store.space, store.write, store.width, store.count) == ("global", True, 4, 10)
    assert store.first == (1 << 33) + 4 * (2 * 10 * 64 + 33)
    assert store.region.name == "out"


@pytest.mark.parametrize(
    ("known", "unknown", "message"),
    [("ISETP.GE.AND", "FROB.GE", "FROB.GE"), ("P0, PT, R11", "P0, QT, R11", "predicate QT")],
)
def test_code_without_a_known_meaning_is_named(known, unknown, message):
    kernel = parse(SASS.replace(known, unknown), USAGE)[FILL.name]
    with pytest.raises(UnknownCodeError, match=message):
        Lane(kernel, fill_launch(blocks=3), block=0, thread=0).run()


def test_access_outside_every_array_is_an_error():
    launch = fill_launch(blocks=3)
    with pytest.raises(RuntimeError, match="outside every array"):
        Lane(FILL, launch, block=3, thread=0).run()


def test_bytes_and_floor_by_hand():
    """2 x 4 x 96 x 4096 steps; B and C have 2 x 4 x 4096 elements each."""
    steps, maps = 3_145_728, 2 * 32_768
    assert (SCAN.elements, SCAN.special()) == (steps, 3 * steps)
    assert SCAN.traffic(False, 2, 4) == 8 * steps + 2 * maps
    # dy, u, delta, du, ddelta; B, C and their gradients
    assert SCAN.traffic(True, 2, 4) == 12 * steps + 4 * maps
    assert H100.floor_seconds(3_000_000, 10) == pytest.approx(1e-6)
    assert H100.floor_seconds(10, 132 * 16 * 1755) == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("stride", "width", "cycles", "bytes_moved"),
    [
        (0, 4, 1, 32),  # the same address for all
        (4, 4, 1, 128),
        (2, 2, 1, 64),
        (16, 16, 4, 512),
        (128, 4, 32, 1024),  # all in one bank, a sector each
        (132, 4, 1, 1024),  # padded rows
    ],
)
def test_transfers_of_a_warp(stride, width, cycles, bytes_moved):
    addresses = lane_addresses([256 + stride * lane for lane in (0, 1, 2, 4, 8, 16)])
    assert addresses == [256 + stride * lane for lane in range(32)]
    assert transfer_size(addresses, width) == (cycles, bytes_moved)


def test_occupancy_by_hand():
    """14 registers are 512 a warp; 64 threads are two warps of 64."""
    assert resident_blocks(FILL, 64, 0, H100) == 32
    assert resident_blocks(FILL, 1024, 0, H100) == 2
    assert resident_blocks(FILL, 64, 100 * 1024, H100) == 2


def test_a_launch_moves_what_its_blocks_write():
    filled = sample(fill_launch(blocks=1000), FILL)
    assert filled.instructions == 1000 * 2 * (16 + 8 * 10 + 1)
    ((region, write), moved) = next(iter(filled.moved.items()))
    assert (region.name, write, moved) == ("out", True, 4 * 1000 * 64 * 10)


def test_scratch_that_fits_in_l2_costs_no_dram():
    written = sample(fill_launch(blocks=1000), FILL)
    assert sum(Traffic(H100, [written]).of(written, 1000).values()) == 4 * 1000 * 64 * 10
    (region,) = written.launch.regions
    scratch = Region("scratch", region.base, region.size)
    written.moved = {(scratch, True): region.size}
    assert sum(Traffic(H100, [written]).of(written, 1000).values()) == 0


def test_time_grows_with_the_work():
    times = [predict([fill_launch(n)], KERNELS, H100)[0].seconds for n in (1, 200, 20_000, 80_000)]
    assert times == sorted(times)
    assert times[0] > H100.launch_seconds
    # large ones are bound by DRAM
    assert times[3] == pytest.approx(4 * 80_000 * 640 / H100.bandwidth, rel=0.2)
    longer = predict([fill_launch(1, steps=1000)], KERNELS, H100)[0].seconds
    assert longer > times[0]


def test_products_take_bytes_or_operations():
    by_bytes, by_operations = predict(
        [Bulk("copy", 3_000_000_000), Bulk("product", 10, 40 * 10**12)], {}, H100
    )
    assert by_bytes.seconds == pytest.approx(1e-3, rel=0.01)
    assert by_operations.seconds == pytest.approx(1.0, rel=0.01)


@needs_host_compiler
def test_host_code_is_asked_for_its_launches(tmp_path):
    host = HostCode(tmp_path)
    few, many = (
        host.work(Scan("a scan", batch, 96, 1, 64, 64, 6), "bf16", "forward", H100)
        for batch in (1, 256)
    )
    assert "route_forward_kernel<__nv_bfloat16, 1" in many[0].kernel
    # small batches are cut into chunks, which takes a pass for the carries
    assert [w.kernel.split("<")[0] for w in few if isinstance(w, Launch)] == [
        "route_forward_carry_kernel",
        "fold_carries_kernel",
        "route_forward_kernel",
        "sum_slots_kernel",
    ]
    names = {region.name: region.size for region in many[0].regions}
    assert names["x"] == 2 * 256 * 96 * 4096
    assert names["y"] == 4 * 256 * 96 * 4096


def test_committed_predictions_say_what_they_are():
    content = json.loads((BENCHMARKS / "results" / "predicted-h100.json").read_text())
    assert "not measured" in content["note"]
    for rows in (content["results"], content["peers_design"]):
        assert len(rows) == 16
        assert len({(r["shape"], r["dtype"], r["pass"]) for r in rows}) == 16
        for row in rows:
            assert row["kind"] == "model"
            assert row["pass"] in ("forward", "backward")
            assert row["ratio"] == pytest.approx(row["time_us"] / row["floor_us"], abs=0.01)
            parts = sum(launch["time_us"] for launch in row["launches"])
            assert parts == pytest.approx(row["time_us"], abs=2)


def run_tool(*arguments):
    return subprocess.run(
        [sys.executable, BENCHMARKS / "gpu_model.py", *arguments], capture_output=True, text=True
    )


def test_unknown_shape_is_refused():
    done = run_tool("--shape", "nothing of that name")
    assert done.returncode == 2
    assert "must be part of the name of a scan (v0-tiny stage1 224x224 bs128" in done.stderr


@pytest.mark.slow
@needs_compilers
@needs_host_compiler
def test_tool_predicts_and_writes(tmp_path):
    done = run_tool("--shape", "tiny-s1l8 stage1 512x512", "--out", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [row["pass"] for row in rows] == ["forward", "backward"]
    assert all(1 < row["ratio"] < 50 for row in rows)
