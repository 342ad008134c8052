"""Predict the time that the CUDA kernels take on an H100, without a GPU.

The figures come from a model, not from measurements; expect them to be off by a factor of two
either way. The model reads the machine code that nvcc generates for the kernels and the launches
that their host code makes; gpu/ holds its parts. It needs nvcc, cuobjdump and a C++ compiler.

    python benchmarks/gpu_model.py                    # benchmarks/results/predicted-h100.json
    python benchmarks/gpu_model.py --instructions     # counts only
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gpu.launches import SOURCES, HostCode
from gpu.machine_code import ARCHITECTURE, Kernel, compile_source
from gpu.multiprocessor import H100, resident_blocks
from gpu.operands import Launch, UnknownCodeError
from gpu.peers import compile_peers, peer_pass
from gpu.prediction import LANES, Bulk, predict, sample
from problems import TINY_S1L8, V0_TINY, Scan, stages
from rich.console import Console
from rich.table import Table

from mmvssm.analysis import write_outputs

RESULT = Path(__file__).resolve().parent / "results" / "predicted-h100.json"
ITEMSIZE = {"fp32": 4, "fp16": 2, "bf16": 2}
OUT_ITEMSIZE = 4  # y is float32
PASSES = ("forward", "backward")
SETTINGS = [(128, (224, 224)), (4, (512, 512)), (2, (800, 1344)), (1, (800, 1344))]
console = Console(highlight=False)


def problems() -> list[tuple[Scan, str]]:
    """Return the scans for which floors are stated, each with the dtype of its inputs."""
    found = []
    for batch, size in SETTINGS:
        found.append((stages("v0-tiny", batch, size, V0_TINY, 16)[0], "fp32"))
        found.append((stages("tiny-s1l8", batch, size, TINY_S1L8, 1)[0], "bf16"))
    return found


def compile_kernels() -> dict[str, Kernel]:
    """Compile all kernels of the package and return them by name."""
    kernels: dict[str, Kernel] = {}
    for source in sorted((SOURCES / "cuda").glob("*.cu")):
        with console.status(f"compiling {source.name} for {ARCHITECTURE}"):
            kernels |= compile_source(source, f"-I{SOURCES}")
    return kernels


def show_instructions(
    kernels: dict[str, Kernel], host: HostCode, chosen: list[tuple[Scan, str]]
) -> None:
    """Print registers and spills of all kernels, and the cost of a step in the chosen scans."""
    table = Table("kernel", "registers", "stack", "spills", "instructions")
    for kernel in kernels.values():
        counts = (kernel.registers, kernel.stack, kernel.spills, len(kernel.code))
        table.add_row(kernel.name, *map(str, counts))
    console.print(table)
    for scan, dtype in chosen:
        for direction in PASSES:
            title = f"{scan.name} {dtype} {direction}"
            table = Table(
                *("kernel", "blocks", "threads", "shared", "resident", "a channel-step"),
                title=title,
            )
            for item in host.work(scan, dtype, direction, H100):
                if not isinstance(item, Launch):
                    continue
                kernel = kernels[item.kernel]
                counts = (item.blocks, item.threads, item.shared)
                counts += (resident_blocks(kernel, item.threads, item.shared, H100),)
                per_step = sample(item, kernel).instructions * LANES / scan.elements
                table.add_row(kernel.name, *map(str, counts), f"{per_step:.1f}")
            console.print(table)


def predict_pass(
    work: Sequence[Launch | Bulk],
    kernels: dict[str, Kernel],
    problem: tuple[Scan, str],
    direction: str,
) -> dict:
    """Return one row of the result: the time of a pass and of each of its launches."""
    scan, dtype = problem
    times = predict(work, kernels, H100)
    seconds = sum(t.seconds for t in times)
    backward = direction == "backward"
    traffic = scan.traffic(backward, ITEMSIZE[dtype], OUT_ITEMSIZE)
    floor = H100.floor_seconds(traffic, scan.special())
    return {
        "shape": scan.name,
        "dtype": dtype,
        "pass": direction,
        "time_us": round(1e6 * seconds, 1),
        "floor_us": round(1e6 * floor, 1),
        "ratio": round(seconds / floor, 2),
        "kind": "model",
        "launches": [
            {
                "name": t.name,
                "blocks": t.blocks,
                "threads": t.threads,
                "blocks_per_multiprocessor": t.resident,
                "instructions_per_channel_step": round(t.instructions * LANES / scan.elements, 1),
                "dram_mb": round(t.dram_bytes / 1e6, 1),
                "time_us": round(1e6 * t.seconds, 1),
            }
            for t in times
        ],
    }


def predict_all(
    kernels: dict[str, Kernel], host: HostCode, chosen: list[tuple[Scan, str]]
) -> tuple[list[dict], list[dict]]:
    """Return rows of our kernels and of the peers' design, one for each problem and pass."""
    peers = compile_peers()
    rows, peer_rows = [], []
    for problem in chosen:
        for direction in PASSES:
            ours = host.work(*problem, direction, H100)
            rows.append(predict_pass(ours, kernels, problem, direction))
            theirs = peer_pass(*problem, direction)
            peer_rows.append(predict_pass(theirs, peers, problem, direction))
            console.print(
                f"{problem[0].name} {problem[1]} {direction}: {rows[-1]['time_us']:.0f} us,"
                f" {rows[-1]['ratio']:.2f} times the floor;"
                f" the peers' design {peer_rows[-1]['time_us']:.0f} us"
            )
    return rows, peer_rows


def main() -> None:
    """Count instructions or predict times, as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--instructions", action="store_true", help="print instruction counts and predict nothing"
    )
    parser.add_argument("--shape", default="", help="only scans with this in their name")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file to write")
    args = parser.parse_args()
    chosen = [(scan, dtype) for scan, dtype in problems() if args.shape in scan.name]
    if not chosen:
        names = ", ".join(scan.name for scan, _ in problems())
        parser.error(f"--shape must be part of the name of a scan ({names}), got {args.shape!r}")
    kernels = compile_kernels()
    try:
        run(args, kernels, chosen)
    except UnknownCodeError as error:
        parser.exit(
            1, f"{parser.prog}: {error}; the model supports what nvcc 13.0 generates for sm_90\n"
        )


def run(
    args: argparse.Namespace, kernels: dict[str, Kernel], chosen: list[tuple[Scan, str]]
) -> None:
    """Print instruction counts, or write predictions."""
    with tempfile.TemporaryDirectory() as folder:
        host = HostCode(Path(folder))
        if args.instructions:
            show_instructions(kernels, host, chosen)
            return
        rows, peer_rows = predict_all(kernels, host, chosen)
    content = {
        "note": "predicted by benchmarks/gpu_model.py, not measured: within a factor of two",
        "device": H100.name,
        "results": rows,
        "peers_design": peer_rows,
    }
    write_outputs([args.out], content)


if __name__ == "__main__":
    main()
